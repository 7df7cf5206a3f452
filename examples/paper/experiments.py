"""The experiments and the runs that each consists of.

The generated images are the main set: they are hard enough for the small network to go through all
phases, as with CIFAR-10 in the paper; scikit-learn's digits are too easy for that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.paper.training import Recipe

BATCH_SIZES = (500, 250, 100, 50, 32, 16, 8, 4, 2)
QUICK_BATCH_SIZES = (500, 100, 16, 4)
LEARNING_RATES = (0.00128, 0.00256, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""At batch size 64, as in the independent replication (see README.md)."""
QUICK_LEARNING_RATES = (0.00128, 0.01, 0.04)
SEEDS = (0, 1, 2)

_GENERATED: dict[str, Any] = {"data": "generated"}
_SETOL: dict[str, Any] = {"network": "SETOL MLP3", "epochs": 60}


@dataclass(frozen=True, slots=True)
class Experiment:
    """A named set of runs."""

    name: str
    title: str
    recipes: tuple[Recipe, ...]


def experiments(*, full: bool, cifar10: Path | None = None, mnist: Path | None = None) -> list[Experiment]:
    """Return all experiments in the order in which they run, the main finding first."""
    return [*_main(full=full), *(_others() if full else ()), *_real(cifar10, mnist)]


def _main(*, full: bool) -> Iterator[Experiment]:
    seeds = SEEDS if full else SEEDS[:1]
    sizes = BATCH_SIZES if full else QUICK_BATCH_SIZES
    rates = LEARNING_RATES if full else QUICK_LEARNING_RATES
    yield Experiment(
        "batch-size",
        "Batch size",
        tuple(Recipe(**_GENERATED, batch_size=size, seed=seed) for seed in seeds for size in sizes),
    )
    yield Experiment(
        "learning-rate",
        "Learning rate, at batch size 64",
        tuple(Recipe(**_GENERATED, batch_size=64, lr=rate, seed=seed) for seed in seeds for rate in rates),
    )
    yield Experiment(
        "collapse",
        "L2 regularisation, from none to far too strong",
        tuple(
            Recipe(**_SETOL, batch_size=16, lr=0.01, weight_decay=decay)
            for decay in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05)
        ),
    )
    yield Experiment(
        "full-batch",
        "Adam on all images at once: heavy tails without the noise of small batches",
        tuple(
            Recipe(network="SETOL MLP3", batch_size=1437, optimizer="Adam", lr=lr, epochs=300)
            for lr in (0.001, 0.003, 0.005, 0.01, 0.02, 0.03)
        ),
    )


def _others() -> Iterator[Experiment]:
    yield Experiment(
        "explicit",
        "Explicit regularisation, at batch size 16",
        (
            Recipe(**_GENERATED),
            *(Recipe(**_GENERATED, weight_decay=decay) for decay in (0.001, 0.005, 0.02)),
            Recipe(**_GENERATED, dropout=0.5),
        ),
    )
    yield Experiment(
        "ratio",
        "Learning rate in proportion to the batch size",
        tuple(Recipe(**_GENERATED, batch_size=size, lr=size / 1000) for size in (32, 16, 8, 4, 2)),
    )
    yield Experiment(
        "label-noise",
        "Half of the labels drawn at random, and memorised",
        tuple(Recipe(**_GENERATED, batch_size=size, label_noise=0.5, epochs=60) for size in (32, 8)),
    )
    yield Experiment(
        "setol",
        "SETOL's MLP3 on digits, the loss summed over the batch",
        tuple(Recipe(**_SETOL, summed=True, momentum=0.0, batch_size=size, lr=0.01) for size in (16, 8, 4, 2, 1)),
    )
    yield Experiment(
        "networks",
        "The paper's other networks",
        (
            Recipe(network="LeNet5", optimizer="Adadelta", lr=1.0, batch_size=128, epochs=20),
            *(Recipe(**_GENERATED, network="MLP3", batch_size=size) for size in (16, 4)),
            *(Recipe(network="MiniAlexNet", epochs=10, batch_size=size) for size in (250, 32, 4)),
        ),
    )
    yield Experiment(
        "digits",
        "Batch size, on digits",
        tuple(Recipe(batch_size=size) for size in (500, 100, 32, 8, 2)),
    )


def _real(cifar10: Path | None, mnist: Path | None) -> Iterator[Experiment]:
    """Yield the experiments on real data, as in the paper; they need a GPU."""
    if cifar10 is not None:
        yield Experiment(
            "cifar10",
            "Batch size, MiniAlexNet on CIFAR-10",
            tuple(
                Recipe(network="MiniAlexNet", data=f"cifar10:{cifar10}", batch_size=size, lr=0.01, epochs=100)
                for size in BATCH_SIZES
            ),
        )
    if mnist is not None:
        yield Experiment(
            "mnist",
            "LeNet5 on MNIST",
            (Recipe(network="LeNet5", data=f"mnist:{mnist}", optimizer="Adadelta", lr=1.0, batch_size=128, epochs=10),),
        )
