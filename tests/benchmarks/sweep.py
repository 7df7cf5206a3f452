"""Measure the time until reports of a large model cover every kind of layer, and until each matrix was read.

    python -m tests.benchmarks.sweep [--every 200] [--seconds-per-step 1.0] [--budget 0.01]

Nothing is trained or read: the schedule, the budget and the control of the threads are those of a run, and its clock is
a number. What a reading costs is a model: one core of a recent server multiplies at 100 GF/s, and a symmetric
eigenvalue problem of size M takes 1.8 s at 4096 and grows as M³ (measured for M up to 4096). Llama shapes: q, k, v, o,
gate, up and down in each block, 16 bits an element. A hook that copies a matrix blocks the run for 0.2 ms, and each
thread that reads slows steps by 0.03 % (a reading of 4096 × 4096 on a core cost a run on an H100 at most 1 ms; see
docs/scale.md). Of idle cores half are used. "Cheapest first, one core" is how it was before all this.

Eigenvalues on the GPU block the run for what they took on an H100 in float64, 117 ms for M = 4096, and the product at
50 TFLOP/s; the rest takes 50 µs of a core for each eigenvalue, charged in full (0.2 s for M = 4096, measured).

In a job of 8 or 64 ranks, 8 on a host, whose weights are sharded, a thread fetches the parts of a weight at 1 GB/s
before it reads it, the threads of a host slow its steps, and with them those of the job, and each rank has so many
idle cores. "Charged in full" is how it was before: one thread on each rank, whose seconds are those of the budget.

A screening reads a weight five times at 15 GB/s in the hook, in float32 (seen on one core); or it takes 0.5 ms of the
hook, where weights are on a GPU, and 0.2 ms, where they are sharded (neither is measured). "Norms" is when ‖W‖_F and
λmax of all matrices were known first, of sharded ones ‖W‖_F alone, with screenings and without; "oldest" the age of the
oldest norms at the due steps after that.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

from esdmon.schedule import priority
from tests.benchmarks.sweep_alone import BANDWIDTH, MODELS, PASSES, QUEUED, simulate, simulate_beside
from tests.benchmarks.sweep_ranks import simulate_ranks


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
    given: dict[str, Any] = {"every": options.every, "step": options.seconds_per_step, "share": options.budget}
    columns = ("model", "", "every kind", "three of each", "all", "norms", "oldest", "the run is slower by")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, model in MODELS.items():
        costs = model.costs()
        sizes = {each: 2 * math.prod(shape) for each, shape in model.shapes().items()}
        in_hook = {each: PASSES * 2 * size / BANDWIDTH for each, size in sizes.items()}
        with mock.patch.object(priority, "first_rounds", _cheapest_first):
            rows = {"cheapest first, one core": simulate(costs, {}, **given)}
        for how, screening in (("readings alone", {}), ("screened", in_hook)):
            rows[f"no idle core, {how}"] = simulate(costs, screening, **given)
        on_device = dict.fromkeys(costs, QUEUED)
        in_the_hook, beside = model.costs_on_device(), model.rest()
        for how, screening in (("readings alone", {}), ("screened", on_device)):
            found = simulate(in_the_hook, screening, beside=beside, **given)
            rows[f"no idle core, eigenvalues on the GPU, {how}"] = found
        for idle in (2, 12):
            for how, screening in (("readings alone", {}), ("screened", on_device)):
                rows[f"{idle} idle cores, {how}"] = simulate_beside(costs, sizes, screening, idle=idle, **given)
        of_all = f"{model.ranks} ranks, {{}} idle cores each"
        in_full = simulate_ranks(model, idle=12, is_charged_in_full=True, is_screened=False, **given)
        rows[of_all.format(12) + ", charged in full"] = in_full
        for idle in (0, 2, 12):
            for how, is_screened in (("readings alone", False), ("screened", True)):
                found = simulate_ranks(model, idle=idle, is_screened=is_screened, **given)
                rows[f"{of_all.format(idle)}, {how}"] = found
        for how, times in rows.items():
            shown = map(_shown, (times.kinds, times.depths, times.all, times.norms, times.oldest))
            print(f"| {' | '.join([name, how, *shown, f'{times.overhead:.2%}'])} |", flush=True)


if __name__ == "__main__":
    main()
