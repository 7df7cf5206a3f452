"""Load scikit-learn's digits, and define the network and the training step of the demo, examples and benchmarks."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from esdmon.errors import MissingExtraError


class MiniAlexNet(nn.Sequential):
    """Two convolutions and three fully connected layers, on 1 × 16 × 16 images; FC1 is 1024 × 384, FC2 384 × 192.

    The paper's (Martin & Mahoney 2021, §5) has FC1 4096 × 384 and FC2 384 × 192 on 28 × 28 × 3 images; here the
    channels are fewer, and there is no batch normalisation. Weights start Glorot normal and biases zero, as there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(1024, 384)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(384, 192)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(192, 10)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)


def digits(side: int = 16) -> tuple[Tensor, Tensor]:
    """Load scikit-learn's digits: images (1797, 1, side, side) of mean 0 and variance 1, and labels.

    Args:
        side: pixels along a side; the originals have 8, others are interpolated.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-learn", "demo") from error
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1)
    images = functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    return (images - images.mean()) / images.std(), torch.as_tensor(data.target)


def batches(count: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Yield batches of indices without end; each pass over the `count` examples is reshuffled."""
    shuffler = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=shuffler), batch_size)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> tuple[float, int]:
    """Take one step of cross-entropy; return the loss and the number of correct labels, both before the step."""
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images with the right label, from 0 to 1."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())
