"""How long a large model takes until its first report covers every kind of layer, and until each matrix was read.

    python -m tests.benchmarks.sweep [--every 200] [--seconds-per-step 1.0] [--budget 0.01]

Nothing is trained or read: the schedule and the budget are those of a run, and its clock is a number. What a reading
costs is a model: one core of a recent server multiplies at 100 GF/s, and a symmetric eigenvalue problem of size M takes
1.8 s at 4096 and grows as M³ (measured for M up to 4096). Llama shapes: q, k, v, o, gate, up and down in each block.
"Cheapest first" is the order of first readings up to now: it read all attention matrices before the first of an MLP.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

from esdmon.schedule import priority
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority

_FLOPS = 1e11
_SOLVE = 1.8 / 4096**3
_DRIFT = 1e-2  # ‖ΔW‖/‖W‖ between due steps: all matrices move


@dataclass(frozen=True)
class Model:
    """A decoder of equal blocks."""

    blocks: int
    width: int
    keys: int
    """Width of k and v, which heads may share."""
    hidden: int

    def costs(self) -> dict[str, float]:
        """Return the seconds of a core that a reading of each matrix takes."""
        attention = {"q_proj": self.width, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.width}
        sides = {f"self_attn.{name}": (self.width, size) for name, size in attention.items()}
        sides |= {f"mlp.{name}_proj": (self.width, self.hidden) for name in ("gate", "up", "down")}
        return {
            f"model.layers.{block}.{name}": 2 * max(shape) * min(shape) ** 2 / _FLOPS + _SOLVE * min(shape) ** 3
            for block in range(self.blocks)
            for name, shape in sides.items()
        }


MODELS = {
    "7B": Model(32, 4096, 4096, 11008),
    "13B": Model(40, 5120, 5120, 13824),
    "70B": Model(80, 8192, 1024, 28672),
}


@dataclass
class Clock:
    """Seconds of the run."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Times:
    """Seconds of the run until something was read; infinite where it was not within the limit."""

    kinds: float
    """One matrix of each kind."""
    depths: float
    """Three of each."""
    all: float
    overhead: float


def simulate(costs: Mapping[str, float], *, every: int, step: float, share: float, limit: float = 3e6) -> Times:
    """Run the schedule and the budget until each matrix was read once."""
    clock = Clock()
    budget = Budget(share, clock=clock, cpu_clock=clock)
    turns = ReadPriority(costs)
    budget.start()
    read: dict[str, float] = {}
    for due in itertools.count(every, every):
        clock.now += every * step
        budget.earn(at_most=4 * turns.sweep)
        turns.pass_by()
        for name in turns.to_look_at():
            turns.looked(name, due, _DRIFT, trainable=True)
        for name in turns.choose(due, budget.credit):
            with budget.spending():
                clock.now += costs[name]  # the loop waits for it: the mode "sync"
            turns.begun(name, due)
            turns.took(name, costs[name])
            read.setdefault(name, clock.now)
        if len(read) == len(costs) or clock.now > limit:
            break
    return Times(_until(read, costs, 1), _until(read, costs, 3), _until(read, costs, None), budget.overhead)


def _until(read: Mapping[str, float], names: Sequence[str] | Mapping[str, float], count: int | None) -> float:
    """Return when so many matrices of each kind had been read."""
    kinds: dict[str, list[float]] = {}
    for name in names:
        kinds.setdefault(name.split(".", 3)[3], []).append(read.get(name, math.inf))
    return max(sorted(times)[len(times) - 1 if count is None else count - 1] for times in kinds.values())


def _cheapest_first(names: Sequence[str]) -> dict[str, int]:
    return dict.fromkeys(names, 0)


def _shown(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--seconds-per-step", type=float, default=1.0)
    parser.add_argument("--budget", type=float, default=0.01)
    options = parser.parse_args()
    print(
        "| model | order of first readings | every kind | three of each | all | time taken |\n|---|---|---|---|---|---|"
    )
    for name, model in MODELS.items():
        for order, rounds in (("cheapest first", _cheapest_first), ("every kind first", priority.first_rounds)):
            with mock.patch.object(priority, "first_rounds", rounds):
                times = simulate(
                    model.costs(), every=options.every, step=options.seconds_per_step, share=options.budget
                )
            cells = [name, order, *map(_shown, (times.kinds, times.depths, times.all)), f"{times.overhead:.1%}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
