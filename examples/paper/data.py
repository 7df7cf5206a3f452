"""Data sets: scikit-learn's digits, generated images, and MNIST and CIFAR-10 from a folder.

Nothing is downloaded. CIFAR-10 and MNIST are read from the files that their authors publish.
"""

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

_DIGITS_TRAINED = 1437  # of 1797; the others are the test set
_MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label and three planes


@dataclass(frozen=True, slots=True)
class Split:
    """Images (n, channels, height, width) and their labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A training and a test set; images have mean 0 and variance 1 over the training set."""

    train: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: (channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        """Return a copy on a device."""
        return Dataset(*(Split(part.images.to(device), part.labels.to(device)) for part in (self.train, self.test)))


def digits(*, size: int = 16, channels: int = 1) -> Dataset:
    """Return the 1797 digits of scikit-learn, scaled up from 8 × 8; a fixed random fifth is the test set."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1)
    images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return _split(images[order].repeat(1, channels, 1, 1), torch.as_tensor(data.target)[order], _DIGITS_TRAINED)


def generated(
    *,
    difficulty: float = 0.5,
    label_noise: float = 0.0,
    train: int = 2000,
    test: int = 1000,
    classes: int = 10,
    size: int = 32,
    seed: int = 0,
) -> Dataset:
    """Generate images of clouds: each class has four prototypes, which are shifted and mixed with random clouds.

    An image is √(1−d)·(a prototype of its class, shifted by up to an eighth) + √d·(a random field). Fields
    are Gaussian with a power spectrum of 1/f², as natural images have (Field, J. Opt. Soc. Am. A 4 (1987) 2379).

    Args:
        difficulty: d, the share of an image's variance that is independent of its class; from 0 to 1.
        label_noise: share of the training labels that are replaced by random ones; from 0 to 1.
        train: number of training images.
        test: number of test images, whose labels are all correct.
        classes: number of classes.
        size: height and width in pixels; there are three channels.
        seed: seed of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    prototypes = _fields(4 * classes, size, generator)
    count = train + test
    labels = torch.arange(count) % classes
    which = labels * 4 + torch.randint(4, (count,), generator=generator)
    shifts = torch.randint(-(size // 8), size // 8 + 1, (count, 2), generator=generator).tolist()
    shown = torch.stack([prototypes[i].roll(shift, (1, 2)) for i, shift in zip(which.tolist(), shifts, strict=True)])
    images = math.sqrt(1 - difficulty) * shown + math.sqrt(difficulty) * _fields(count, size, generator)
    order = torch.randperm(count, generator=generator)
    dataset = _split(images[order], labels[order], train)
    wrong = torch.rand(train, generator=generator) < label_noise
    drawn = torch.randint(classes, (train,), generator=generator)
    return Dataset(Split(dataset.train.images, torch.where(wrong, drawn, dataset.train.labels)), dataset.test)


def mnist(folder: Path) -> Dataset:
    """Read MNIST from its four idx files, with or without .gz.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not in the idx format.
    """
    parts = [_read_idx(_found(folder, [name, f"{name}.gz"])) for name in _MNIST]
    images = torch.cat([parts[0], parts[2]]).float().unsqueeze(1)
    return _split(images, torch.cat([parts[1], parts[3]]).long(), len(parts[0]))


def cifar10(folder: Path, *, size: int = 28) -> Dataset:
    """Read CIFAR-10 in its binary version (data_batch_1.bin … test_batch.bin), the centre of each image.

    The version for Python is not supported: it holds pickles, and unpickling can run any code.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the length of a file is not a multiple of the record length.
    """
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    records = [_read_records(_found(folder, [name])) for name in names]
    trained = sum(len(part) for part in records[:-1])
    every = torch.cat(records)
    images = every[:, 1:].reshape(-1, 3, 32, 32).float()
    margin = (32 - size) // 2
    # The paper standardises each image by itself.
    images = functional.layer_norm(images, images.shape[1:])[:, :, margin : margin + size, margin : margin + size]
    return _split(images, every[:, 0].long(), trained)


def _split(images: Tensor, labels: Tensor, trained: int) -> Dataset:
    mean, deviation = images[:trained].mean(), images[:trained].std()
    images = (images - mean) / deviation
    return Dataset(Split(images[:trained], labels[:trained]), Split(images[trained:], labels[trained:]))


def _fields(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw Gaussian fields of power 1/f², (count, 3, size, size), each of mean 0 and variance 1."""
    white = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator))
    rows, columns = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = torch.hypot(rows[:, None], columns[None, :])
    frequency[0, 0] = math.inf  # no field has a mean
    fields: Tensor = torch.fft.irfft2(white / frequency, s=(size, size))
    return fields / fields.std(dim=(1, 2, 3), keepdim=True)


def _found(folder: Path, names: Sequence[str]) -> Path:
    for path in (folder / name for name in names):
        if path.exists():
            return path
    msg = f"{folder} does not contain {' or '.join(names)}"
    raise FileNotFoundError(msg)


def _read_idx(path: Path) -> Tensor:
    """Read unsigned bytes in the idx format: two zeros, the type 8, the number of sides, the sides, and the bytes."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    sides = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * sides
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, sides + 1)]
    if not sides or len(content) != start + math.prod(shape):
        msg = f"{path} is truncated, or not an idx file of bytes"
        raise ValueError(msg)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _read_records(path: Path) -> Tensor:
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _CIFAR_RECORD:
        msg = f"{path} is truncated, or not a binary batch of CIFAR-10: {content.size} bytes"
        raise ValueError(msg)
    return torch.from_numpy(content.reshape(-1, _CIFAR_RECORD))
