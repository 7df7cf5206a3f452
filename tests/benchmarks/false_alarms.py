"""Count how often healthy trainings raise an alert.

    python -m tests.benchmarks.false_alarms [--seed 200] [--long] [--out runs/healthy] [--only PATTERN]

Trains each run of `RUNS` with all rules on, as `esdmon.watch` has them by default, and counts the alerts of severity
warning or worse. Thresholds were set on the seeds 0 and 100; what is published is 200. The JSONL of each
run stays in `--out`, so that other thresholds can be tried on it by `esdmon alerts replay`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

import esdmon
from esdmon import schedule
from tests.benchmarks.healthy import TASKS, Run, train
from tests.benchmarks.kinds import KINDS

_SGD, _DECAY, _W1 = "SGD .9", "SGD .9 wd 5e-4", "AdamW .1"
_SMALL = ("SGD", _SGD, _DECAY, "Adam", "AdamW .01", _W1, "RMSprop")
RUNS = (
    *(Run(task="MLP", optimizer=name, seed=k) for k, name in enumerate(("SGD", _SGD, _DECAY, "Adam", "AdamW .01"))),
    *(Run(task="MLP", optimizer=name, seed=k) for k, name in enumerate((_W1, "RMSprop", "Adadelta"), start=5)),
    *(Run(task="MLP", batch_size=size, steps=steps, seed=k) for k, (size, steps) in enumerate(((8, 1500), (256, 400)))),
    *(Run(task="MLP", schedule=name, seed=3) for name in ("cosine", "warm-up", "steps", "one-cycle")),
    Run(task="MLP", optimizer=_DECAY, schedule="cosine", steps=3000, readings=150, seed=4),
    *(Run(task="wide MLP", optimizer=name, seed=k) for k, name in enumerate((_SGD, "Adam", _W1))),
    *(Run(task="MLP, 64 inputs", optimizer=name, steps=2400, batch_size=64, seed=k) for k, name in enumerate(_SMALL)),
    *(
        Run(task=f"{how}MLP, 64 inputs, fast", optimizer=name, steps=steps, batch_size=64, seed=k)
        for how, steps in (("", 600), ("narrow ", 2400))
        for k, name in enumerate((_DECAY, "Adam", "AdamW .01", _W1))
    ),
    *(Run(task="deep MLP, batch norm", optimizer=name, seed=k) for k, name in enumerate((_SGD, _DECAY, "Adam", _W1))),
    *(Run(task="MLP, dropout", optimizer=name, seed=k) for k, name in enumerate((_SGD, "Adam"))),
    *(Run(task="MiniAlexNet", optimizer=name, steps=300, seed=k) for k, name in enumerate((_SGD, _DECAY, "Adam"))),
    Run(task="MiniAlexNet", batch_size=8, steps=800, seed=3),
    Run(task="ResNet", steps=200, seed=0),
    Run(task="ResNet", optimizer=_DECAY, schedule="one-cycle", steps=200, seed=1),
    Run(task="ResNet", optimizer=_W1, schedule="cosine", steps=200, seed=2),
    *(Run(task="zero residual", optimizer=name, seed=k) for k, name in enumerate((_SGD, "Adam", "AdamW .01"))),
    *(
        Run(task="transformer on rows", optimizer=name, schedule=how, steps=400, clip=True, seed=k)
        for k, (name, how) in enumerate((("Adam", "warm-up"), ("AdamW .01", "cosine"), (_W1, "one-cycle")))
    ),
    *(Run(task="autoencoder", optimizer=name, seed=k) for k, name in enumerate(("Adam", "AdamW .01", "RMSprop"))),
    *(
        Run(task="decoder", optimizer=name, schedule=how, steps=500, clip=clip, seed=k)
        for k, (name, how, clip) in enumerate(
            (
                ("Adam", "constant", False),
                ("AdamW .01", "cosine", True),
                (_W1, "warm-up", True),
                (_W1, "one-cycle", True),
                ("RMSprop", "warm-up", True),
            )
        )
    ),
    *(Run(task="LSTM", optimizer=name, steps=500, clip=True, seed=k) for k, name in enumerate(("Adam", "AdamW .01"))),
    *(Run(task="GRU", optimizer=name, steps=500, clip=True, seed=k) for k, name in enumerate(("Adam", _W1))),
    *(Run(task="words", optimizer=name, steps=600, seed=k) for k, name in enumerate((_SGD, "Adam", _W1))),
    *(Run(task="fine-tuned", optimizer=name, seed=k) for k, name in enumerate((_SGD, _DECAY, "Adam", "AdamW .01"))),
    *(Run(task=f"fine-tuned, frozen, {how}in optimizer", seed=k) for k, how in enumerate(("", "not "))),
    *(Run(task="fine-tuned, pruned", optimizer=name, seed=k) for k, name in enumerate((_SGD, "Adam"))),
    *(Run(task="fine-tuned, LoRA", optimizer=name, seed=k) for k, name in enumerate((_SGD, "Adam", _W1))),
    *(Run(task="matrices only", optimizer="Muon", schedule=how, seed=k) for k, how in enumerate(("warm-up", "cosine"))),
    *(Run(task="sines of coordinates", optimizer="Adam", batch_size=2048, steps=2000, seed=k) for k in range(3)),
    *(
        Run(task=task, optimizer=name, batch_size=128, steps=2000, seed=k)
        for task in KINDS
        if task != "sines of coordinates"
        for k, name in enumerate(("Adam", "AdamW .01"))
    ),
)

LONG = (
    Run(task="MLP", optimizer=_DECAY, schedule="cosine", steps=12_000, readings=600),
    Run(task="MLP", optimizer="Adam", steps=12_000, readings=600, seed=1),
    Run(task="deep MLP, batch norm", optimizer="AdamW .01", schedule="one-cycle", steps=6000, readings=400, seed=2),
    Run(task="MiniAlexNet", batch_size=16, steps=3000, readings=400, seed=4),
    Run(task="zero residual", optimizer="AdamW .01", schedule="warm-up", steps=6000, readings=400, seed=5),
    Run(task="decoder", optimizer=_W1, schedule="cosine", clip=True, steps=4000, readings=300, seed=6),
    Run(task="GRU", optimizer="AdamW .01", schedule="cosine", clip=True, steps=4000, readings=300, seed=8),
    Run(
        task="transformer on rows",
        optimizer="AdamW .01",
        schedule="warm-up",
        clip=True,
        steps=3000,
        readings=300,
        seed=9,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run: Run
    readings: int
    before: float
    after: float
    alerts: Counter[str]
    """By rule, of severity warning or worse."""

    @property
    def is_healthy(self) -> bool:
        """Whether it has learned something that holds on other examples."""
        return self.after < 0.8 * self.before


def do(run: Run, folder: Path) -> Outcome:
    """Train it, watched."""
    path = folder / f"{run.name}.jsonl"
    path.unlink(missing_ok=True)
    torch.manual_seed(run.seed)
    task = (TASKS | KINDS)[run.task]()
    # Every other run by a clock of its own, as a log of a long training would be.
    when = schedule.per_decade(15) if run.seed % 4 == 3 else max(1, run.steps // run.readings)
    watched: list[esdmon.Monitor] = []

    def begin(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        watched.append(
            esdmon.watch(model, optimizer, every=when, budget=None, sinks=f"jsonl:{path}", layers=task.layers)
        )
        return watched[0].close

    before, after = train(run, task, begin)
    (monitor,) = watched
    fired = Counter(alert.rule for alert in monitor.alerts if alert.state == "firing" and alert.severity != "info")
    readings = sum('"kind":"summary"' in line for line in path.open(encoding="utf-8"))
    return Outcome(run, readings, before, after, fired)


def table(outcomes: list[Outcome]) -> str:
    """A line for each task."""
    lines = ["| training | runs | optimizers | reports | loss before → after | alerts |", "|---|---|---|---|---|---|"]
    for task, of_task in groupby(outcomes, key=lambda outcome: outcome.run.task):
        group = list(of_task)
        optimizers = ", ".join(dict.fromkeys(outcome.run.optimizer for outcome in group))
        readings = sum(outcome.readings for outcome in group)
        before, after = (sum(getattr(o, key) for o in group) / len(group) for key in ("before", "after"))
        alerts = sum((outcome.alerts for outcome in group), Counter[str]())
        counts = ", ".join(f"{rule} {count}" for rule, count in alerts.items()) or "none"
        lines.append(f"| {task} | {len(group)} | {optimizers} | {readings} | {before:.2f} → {after:.2f} | {counts} |")
    wrong = sum(bool(outcome.alerts) for outcome in outcomes)
    readings = sum(outcome.readings for outcome in outcomes)
    lines.append(f"| all | {len(outcomes)} | | {readings} | | {wrong} of {len(outcomes)} runs |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/healthy"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--seed", type=int, default=200, help="added to the seed of each run")
    parser.add_argument("--long", action="store_true", help="eight runs of 300 to 600 readings instead")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    outcomes = []
    for run in (replace(run, seed=run.seed + options.seed) for run in (LONG if options.long else RUNS)):
        if fnmatch(run.name, options.only):
            start = time.perf_counter()
            outcome = do(run, options.out)
            outcomes.append(outcome)
            state = "" if outcome.is_healthy else ", NOT HEALTHY"
            loss = f"{outcome.before:.3f} → {outcome.after:.3f}{state}"
            print(f"{run.name}: {loss}, {dict(outcome.alerts)}, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{table(outcomes)}")


if __name__ == "__main__":
    main()
