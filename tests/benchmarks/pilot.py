"""Run the faults of a ReLU MLP on digits on which alerts were first tried, and compare with signals without spectra.

    python -m tests.benchmarks.pilot [--every 20] [--begin STEP] [--out runs/value]

The runs are those of `value.py` that train its MLP; records in `--out` are shared with it. The thresholds of the
other signs are validation loss 20 % over its best, accuracy 2 points below its best, gradient norm ten times its
median. After the stroke stand the steps by thresholds that are loosened until no healthy training trips them. At
`--every 200` a fault begins at step 2400, after twelve readings; `--begin 600` puts it at that step, where there is
no baseline yet.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.fault_kinds import KINDS
from tests.benchmarks.faults import MLP_ADAM, MLP_ADAMW, MLP_SGD, Case, Kind, Recipe
from tests.benchmarks.value import SIGNS, Record, Store, judge

_KINDS = (
    "weight decay too strong (SGD)",
    "weight decay too strong (AdamW, Muon)",
    "learning rate raised (SGD)",
    "learning rate raised (Adam, Muon)",
    "batches far too small",
    "labels random",
    "a layer begun again",
)
_SHOWN = SIGNS[:3]
_MLPS = (MLP_SGD, MLP_ADAM, MLP_ADAMW)


def cases() -> Iterator[tuple[Kind, Case]]:
    """Yield the faults of the pilot."""
    for kind in KINDS:
        for case in kind.cases:
            # The second layer begun again, with SGD, was not part of it.
            if (
                kind.name in _KINDS
                and case.recipe in _MLPS
                and (kind.name, case.how) != ("a layer begun again", "second")
            ):
                yield kind, case


def rows(store: Store, begin: int | None) -> Iterator[str]:
    """Yield a line for each fault, and one for each healthy training."""
    twins = {
        recipe: store.record(_at(f"healthy: {recipe.name}", begin), _moved(recipe, store.every, begin))
        for recipe in _MLPS
    }
    loose = {sign.name: sign.limit(twins.values()) for sign in SIGNS}
    yield f"| fault | first warning, steps after | named as | right | {' | '.join(sign.name for sign in _SHOWN)} |"
    yield "|---|---|---|---|" + "---|" * len(_SHOWN)
    for kind, case in cases():
        name = f"{kind.name}: {case.recipe.name}: {case.how}"
        record = store.record(_at(name, begin), _moved(case.recipe, store.every, begin), case)
        outcome = judge(name, kind, record, loose)
        first = outcome.first
        warned = (_steps(outcome.steps["alert"]), f"`{first.rule}`" if first else "–")
        right = ("yes" if outcome.is_right else "no") if first else "–"
        yield f"| {name} | {' | '.join((*warned, right, *_signs(record, loose)))} |"
    for recipe, twin in twins.items():
        found = ", ".join(f"`{alert.rule}`" for alert in twin.serious()) or "never"
        yield f"| healthy: {recipe.name} | {found} | – | – | {' | '.join(_signs(twin, loose))} |"
    yield "Loosened: " + ", ".join(f"{sign.name} {loose[sign.name]:g}" for sign in _SHOWN)


def _signs(record: Record, loose: dict[str, float]) -> Iterator[str]:
    """Yield the steps until each sign shows, by its tightest threshold and by the loosened one."""
    for sign in _SHOWN:
        first = (sign.first(record, limit, record.begin) for limit in (sign.limits[0], loose[sign.name]))
        yield " / ".join(_steps(step - record.begin) for step in first)


def _moved(recipe: Recipe, every: int, begin: int | None) -> Recipe:
    moved = recipe.at(every)
    return moved if begin is None else replace(moved, begin=begin)


def _at(name: str, begin: int | None) -> str:
    return name if begin is None else f"{name} from {begin}"


def _steps(steps: float) -> str:
    return f"{steps:.0f}" if math.isfinite(steps) else "never"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=20, help="steps between readings")
    parser.add_argument("--begin", type=int, help="step after which the fault begins")
    parser.add_argument("--out", type=Path, default=Path("runs/value"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("\n".join(rows(Store(options.out, options.every), options.begin)))


if __name__ == "__main__":
    main()
