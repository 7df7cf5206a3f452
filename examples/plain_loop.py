"""One line added to a plain PyTorch loop: `python examples/plain_loop.py`, then `tensorboard --logdir runs/plain`."""

from contextlib import nullcontext

import torch
from sklearn.datasets import load_digits
from torch import nn

import esdmon


def train(*, watched: bool = True, out: str = "runs/plain", epochs: int = 5) -> tuple[list[float], nn.Module]:
    """Train a small network on digits; return the losses and the network."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.as_tensor(data.data / 16, dtype=torch.float32), torch.as_tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    # The one line. As a context manager it also closes what it opened; `monitor.close()` does the same.
    monitor = esdmon.watch(model, optimizer, every=50, sinks=[f"tensorboard:{out}", "console"]) if watched else None

    losses = []
    with monitor or nullcontext():
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(images)), 16):
                loss = nn.functional.cross_entropy(model(images[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                losses.append(loss.item())
    return losses, model


if __name__ == "__main__":
    train()
