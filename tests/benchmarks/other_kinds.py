"""Record the alerts on faulty trainings of other kinds, on which no threshold was set.

    python -m tests.benchmarks.other_kinds [--only PATTERN] [--every 40]

Each task of `kinds.py` is trained by AdamW for 1000 steps and then for 1000 with a fault, watched. A cell has the first
warning after the fault, the steps until then, and the held-back loss at the end over that at the fault; a cross marks a
name that is not the cause.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch

import torch

import esdmon
from tests.benchmarks.fault_kinds import JUMPS, RESET, SHRINKS
from tests.benchmarks.faults import (
    Case,
    Fault,
    Recipe,
    Training,
    begun_again,
    decayed,
    not_loaded,
    raised_rate,
    reversed_gradient,
)
from tests.benchmarks.kinds import KINDS

_RECIPE = Recipe(task="", optimizer="AdamW .01", begin=1000, after=1000, batch_size=128)
_LAYERS = {
    "sines of coordinates": "layers.1",
    "variational autoencoder": "decoder.3",
    "diffusion": "3",
    "contrastive": "3",
    "heat equation": "1.1",
    "deep linear": "2",
}
"""The layer of each task that a fault of one layer is put into."""


def faults(layer: str) -> dict[str, tuple[str, Fault | None]]:
    """Return the faults by name, each with the rules that name its cause."""
    weights = f"{layer}.*"
    return {
        "none": ("", None),
        "learning rate × 5": (JUMPS, raised_rate(5)),
        "learning rate × 20": (JUMPS, raised_rate(20)),
        "weight decay 3": (SHRINKS, decayed(3.0)),
        "weight decay 10": (SHRINKS, decayed(10.0)),
        "a layer begun again": (RESET, begun_again(weights)),
        "the same, ten times as large": (RESET, begun_again(weights, scale=10.0)),
        "a layer not loaded": (RESET, not_loaded(weights)),
        "a gradient reversed": (f"{JUMPS} stable_rank_drop", reversed_gradient(weights)),
    }


def cell(recipe: Recipe, case: Case | None, right: str, every: int) -> str:
    """Train with a fault, and return what came of it."""
    torch.manual_seed(recipe.seed)
    training = Training(recipe)
    monitor = esdmon.watch(training.model, training.optimizer, every=every, budget=None, mode="sync", sinks=[])
    losses = []
    for step in range(recipe.begin + recipe.after):
        if step == recipe.begin:
            losses.append(training.task.held_back_loss())
            if case is not None:
                case.fault(training)
        training.step()
    monitor.close()
    ratio = training.task.held_back_loss() / losses[0]
    warnings = [alert for alert in monitor.alerts if alert.state == "firing" and alert.severity != "info"]
    if not warnings:
        return f"none; {ratio:.3g}"
    first = warnings[0]
    wrong = "" if first.rule in right.split() and first.step > recipe.begin else " ✗"
    return f"`{first.rule}`{wrong} {first.step - recipe.begin}; {ratio:.3g}"


def row(task: str, every: int) -> Mapping[str, str]:
    """Return the cells of a task."""
    recipe = replace(_RECIPE, task=task)
    return {
        name: cell(recipe, None if fault is None else Case(recipe, name, fault), right, every)
        for name, (right, fault) in faults(_LAYERS[task]).items()
    }


def main() -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*", help="names of tasks")
    parser.add_argument("--every", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = list(faults(""))
    print(f"| training | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for task in filter(lambda name: fnmatch(name, options.only), KINDS):
        print(f"| {task} | {' | '.join(row(task, options.every).values())} |", flush=True)


if __name__ == "__main__":
    main()
