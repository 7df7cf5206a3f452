"""Measure the savings of skipping matrices that have hardly moved, and the changes that are missed meanwhile.

    python -m tests.benchmarks.skipped

Trains with a cosine schedule to learning rate 0, and at each due step reads every matrix twice over: now, and as a
monitor would report it that repeats the last reading while ‖ΔW‖/‖W‖ since then is at most a tolerance. Printed for each
tolerance: the share of readings saved; the largest difference in alpha between the two, absolute and in standard errors
of the fit, where alpha means something and over all; and how many of the repeated readings name another phase.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from esdmon.cli.digits import MiniAlexNet, batches, digits
from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.records import LayerReport
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.schedule.priority import TOLERANCE
from esdmon.weights import Drift
from tests.benchmarks.overhead import TASKS


def reader_of(model: torch.nn.Module) -> Reader:
    known = Plugins()
    return Reader(model, known, ReadingOptions(choose_measures("default", known.measures)), drift=Drift())


@dataclass
class Repeater:
    """Readings that are repeated while the weights have moved by no more than a tolerance."""

    reader: Reader
    tolerance: float
    kept: dict[str, LayerReport] = field(default_factory=dict)
    saved: int = 0
    asked: int = 0
    meaningful: list[tuple[float, float]] = field(default_factory=list)
    all: list[tuple[float, float]] = field(default_factory=list)
    other_phases: int = 0

    def take(self, now: LayerReport) -> None:
        """Compare what is reported with what is."""
        self.asked += 1
        drift = self.reader.drifts([now.name])[now.name]
        if now.name not in self.kept or not drift <= self.tolerance:
            self.reader.mark(now.name)
            self.kept[now.name] = now
            return
        self.saved += 1
        shown = self.kept[now.name]
        self.other_phases += shown.phase is not now.phase
        difference = abs(now.measures["alpha"] - shown.measures["alpha"])
        self.all.append((difference, difference / now.measures["alpha_stderr"]))
        if now.alpha_is_meaningful and shown.alpha_is_meaningful:
            self.meaningful.append(self.all[-1])

    def __str__(self) -> str:
        """One line."""
        return (
            f"  tolerance {self.tolerance:.0e}: {self.saved / self.asked:4.0%} of {self.asked} saved; alpha off by at "
            f"most {_worst(self.meaningful)}; of all alphas {_worst(self.all)}; another phase in {self.other_phases}"
        )


def _worst(differences: list[tuple[float, float]]) -> str:
    absolute, in_errors = (max((pair[k] for pair in differences), default=math.nan) for k in (0, 1))
    return f"{absolute:.4f}, or {in_errors:.3f} standard errors, in {len(differences)}"


def alexnet(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[None]]:
    """MiniAlexNet on digits, batch 4, SGD with momentum."""
    images, labels = digits()
    model = MiniAlexNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)

    def train() -> Iterator[None]:
        done = 0
        while done < steps:
            for index in batches(len(images), 4, seed=done):
                _step(model, optimizer, images[index], labels[index])
                done += 1
                yield

    return model, optimizer, train()


def language(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[None]]:
    """Three blocks of a decoder on English bytes, AdamW."""
    task = TASKS["gpt"](1)
    model = task.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train() -> Iterator[None]:
        for k in range(steps):
            _step(model, optimizer, *task.batch(k))
            yield

    return model, optimizer, train()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def main() -> None:
    """Print a block for each training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=9000, help="of alexnet; the other takes half")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--networks", nargs="*", default=["alexnet", "language"], choices=["alexnet", "language"])
    options = parser.parse_args()
    for make in [{"alexnet": alexnet, "language": language}[name] for name in options.networks]:
        torch.manual_seed(0)
        steps = options.steps if make is alexnet else options.steps // 2
        model, optimizer, training = make(steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        reader = reader_of(model)
        tolerances = (TOLERANCE / 10, TOLERANCE, 10 * TOLERANCE)
        repeaters = [Repeater(reader_of(model), tolerance) for tolerance in tolerances]
        for step, _ in enumerate(training, start=1):
            schedule.step()
            if step % options.every == 0:
                for matrix in reader.matrices:
                    layer = reader.read_one(matrix.name, step)
                    for repeater in repeaters:
                        repeater.take(layer)
            if step == steps:
                break
        print(f"{make.__doc__} {steps} steps, every={options.every}, {len(reader.matrices)} matrices")
        print(*repeaters, sep="\n", flush=True)


if __name__ == "__main__":
    main()
