"""What the experiments are trained on."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.paper import data


@pytest.mark.parametrize("make", [data.digits, data.generated], ids=["digits", "generated"])
def test_sets_are_the_same_each_time_and_standardised(make: type) -> None:
    """Mean 0 and variance 1 over the training images, all ten classes in both parts, nothing drawn from anybody."""
    state = torch.get_rng_state()
    first, second = make(), make()
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("train", "test"):
        assert torch.equal(getattr(first, part).images, getattr(second, part).images)
        assert set(getattr(first, part).labels.tolist()) == set(range(10))
    assert float(first.train.images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(first.train.images.std()) == pytest.approx(1, abs=1e-5)


def test_difficulty_is_the_share_of_variance_without_information() -> None:
    """At 0 images of one prototype are shifted copies; at .9 they hardly resemble each other."""

    def nearest(difficulty: float) -> float:
        made = data.generated(difficulty=difficulty, train=1000, test=10, size=8).train.images.flatten(1)
        unit = made / made.norm(dim=1, keepdim=True)
        cosine = unit @ unit.T - 2 * torch.eye(len(unit))
        return float(cosine.max(1).values.median())

    assert nearest(0.0) > 0.99
    assert nearest(0.9) < 0.6


def test_label_noise_spoils_training_labels_alone() -> None:
    """Half drawn again among ten classes leaves 55 % unchanged; images and the test are the same."""
    clean, noisy = data.generated(size=8), data.generated(size=8, label_noise=0.5)
    assert torch.equal(clean.train.images, noisy.train.images)
    assert torch.equal(clean.test.labels, noisy.test.labels)
    assert float((clean.train.labels == noisy.train.labels).float().mean()) == pytest.approx(0.55, abs=0.04)


def write_mnist(folder: Path, *, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for kind, count in (("train", 30), ("t10k", 12)):
        images = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        for name, content in (
            (f"{kind}-images-idx3-ubyte", images + rng.integers(0, 256, count * 784, np.uint8).tobytes()),
            (f"{kind}-labels-idx1-ubyte", labels + bytes(n % 10 for n in range(count))),
        ):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_mnist_from_its_own_files(packed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """In the idx format."""
    write_mnist(tmp_path, packed=packed)
    found = data.mnist(tmp_path)
    assert (len(found.train), len(found.test), found.shape) == (30, 12, (1, 28, 28))
    assert found.test.labels.tolist() == [n % 10 for n in range(12)]


def test_a_damaged_file_of_mnist_is_refused(tmp_path: Path) -> None:
    """By its name."""
    write_mnist(tmp_path, packed=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is truncated"):
        data.mnist(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not contain t10k-images-idx3-ubyte or"):
        data.mnist(tmp_path)


def test_cifar10_from_its_binary_version(tmp_path: Path) -> None:
    """Centre of each image, standardised by itself; labels first."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (7, 3073), np.uint8)
        records[:, 0] = np.arange(7)
        (tmp_path / name).write_bytes(records.tobytes())
    found = data.cifar10(tmp_path)
    assert (len(found.train), len(found.test), found.shape) == (35, 7, (3, 28, 28))
    assert found.test.labels.tolist() == list(range(7))
    (tmp_path / "data_batch_3.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match=r"data_batch_3.bin is truncated, .* 3072 bytes"):
        data.cifar10(tmp_path)
