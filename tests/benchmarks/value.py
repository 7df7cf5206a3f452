"""Test whether an alert names a fault correctly, and comes before other signals show it.

    python -m tests.benchmarks.value [--every 20] [--only PATTERN] [--out runs/value]

Trains each faulty run of `fault_kinds.py`, and one healthy twin for all of the same recipe, with the seed and the order
of the data that they share. Beside the alerts of `esdmon.watch` stand plain thresholds on what users log: the loss and
the accuracy on held-back examples, the norm of the gradient, the update ratio. A threshold that trips on a healthy twin
is loosened for that architecture until it does not. Kinds of faults alternate: the first, third, … may set thresholds
of rules, the others only report. A run whose record lies in `--out` is not trained again; with `--every 200` the cheap
recipes alone are trained, for longer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median, median_low
from typing import Any, Protocol

import torch

import esdmon
from esdmon.records import Alert
from tests.benchmarks.fault_kinds import KINDS
from tests.benchmarks.faults import Case, Kind, Recipe, Training

_WINDOW = 50  # steps, of which the median is what a norm or a ratio is compared with
SERIOUS = {"warning", "error", "critical"}
Point = tuple[int, float]
"""A step and what was measured after it."""


@dataclass(frozen=True)
class Raised:
    """An alert that began to fire."""

    rule: str
    severity: str
    step: int
    since: int
    layers: tuple[str, ...]
    message: str


class Measured(Protocol):
    """A run whose signs are looked at."""

    @property
    def begin(self) -> int: ...

    @property
    def series(self) -> dict[str, list[Point]]: ...


@dataclass(frozen=True)
class Record:
    """What was seen of a run."""

    recipe: str
    begin: int
    alerts: tuple[Raised, ...]
    series: dict[str, list[Point]]
    seconds: float

    def after_fault(self) -> list[Raised]:
        """Return the alerts of severity warning or worse that fired after the fault, in the order of the monitor."""
        return [alert for alert in self.serious() if alert.step > self.begin]

    def serious(self) -> list[Raised]:
        return [alert for alert in self.alerts if alert.severity in SERIOUS]


@dataclass(frozen=True)
class Sign:
    """What a user would see without spectra, by a plain threshold."""

    name: str
    series: str
    excess: Callable[[Sequence[float]], Iterator[float]]
    """By how much each value is out of the ordinary, given those before."""
    limits: tuple[float, ...]
    """The threshold, and looser ones in turn."""

    def first(self, record: Measured, limit: float, after: int) -> float:
        """Return the first step after that one at which it shows; infinity if it never does."""
        points = record.series[self.series]
        excess = self.excess([value for _, value in points])
        return next(
            (step for (step, _), by in zip(points, excess, strict=True) if step > after and by > limit), math.inf
        )

    def limit(self, twins: Iterable[Measured]) -> float:
        """Return the tightest threshold that no healthy twin trips once it has settled: in half of the time before."""
        healthy = list(twins)
        quiet = (
            limit
            for limit in self.limits
            if all(math.isinf(self.first(twin, limit, twin.begin // 2)) for twin in healthy)
        )
        return next(quiet, math.inf)


def _over_best(values: Sequence[float]) -> Iterator[float]:
    best = math.inf
    for value in values:
        yield value / best if math.isfinite(value) else math.inf
        best = min(best, value)


def _points_below_best(values: Sequence[float]) -> Iterator[float]:
    best = 0.0
    for value in values:
        yield 100 * (best - value)
        best = max(best, value)


def _over_median(values: Sequence[float]) -> Iterator[float]:
    for place, value in enumerate(values):
        usual = median(values[place - _WINDOW : place]) if place >= _WINDOW else math.inf
        yield value / max(usual, 1e-30) if math.isfinite(value) else math.inf


_TIMES = (10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
SIGNS = (
    Sign("validation loss", "loss", _over_best, (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)),
    Sign("accuracy", "accuracy", _points_below_best, (2.0, 3.0, 5.0, 10.0, 20.0)),
    Sign("gradient norm", "gradient", _over_median, _TIMES),
    Sign("update ratio", "update", _over_median, _TIMES),
)


def do(recipe: Recipe, case: Case | None, every: int) -> Record:
    """Train it, watched, with the fault of the case or with none."""
    start = time.perf_counter()
    alerts, series = follow(Training(recipe), case, every)
    return Record(recipe.name, recipe.begin, alerts, series, round(time.perf_counter() - start, 1))


def follow(training: Training, case: Case | None, every: int) -> tuple[tuple[Raised, ...], dict[str, list[Point]]]:
    """Train to the end, watched; returns the alerts that began, and the series of all signs."""
    recipe = training.recipe
    torch.manual_seed(recipe.seed)  # of dropout
    series: dict[str, list[Point]] = {sign.series: [] for sign in SIGNS}
    monitor = esdmon.watch(
        training.model,
        training.optimizer,
        every=every,
        budget=None,
        mode="sync",
        sinks=[],
        layers=training.task.layers,
    )
    for step in range(1, recipe.begin + recipe.after + 1):
        if case is not None and step == recipe.begin + 1:
            case.fault(training)
        _note(series, step, dict(zip(("gradient", "update"), training.step(), strict=True)))
        if step % min(every, 20) == 0:
            _note(series, step, dict(zip(("loss", "accuracy"), training.held_back(), strict=True)))
    monitor.close()
    firing: dict[str, Alert] = {}
    for alert in monitor.alerts:
        if alert.state == "firing":
            firing.setdefault(alert.id, alert)  # and not what it grew to
    return tuple(Raised(a.rule, a.severity, a.step, a.since, a.layers, a.message) for a in firing.values()), series


def _note(series: dict[str, list[Point]], step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        series[name].append((step, float(f"{value:.4g}")))


@dataclass(frozen=True)
class Store:
    """A folder of records."""

    folder: Path
    every: int

    def record(self, name: str, recipe: Recipe, case: Case | None = None) -> Record:
        """Return what was recorded under that name, after training it if nothing was."""
        path = self.folder / f"{name.replace(' ', '-').replace('/', '-')}_every{self.every}.json"

        def train() -> Record:
            record = do(recipe, case, self.every)
            found = ", ".join(f"{a.rule} {a.severity} at {a.step} since {a.since}" for a in record.alerts) or "no alert"
            print(f"{name}: fault at {record.begin}: {found} ({record.seconds:.0f} s)", flush=True)
            return record

        return Record(**stored(path, train))


def stored(path: Path, train: Callable[[], Any]) -> dict[str, Any]:
    """Return the fields of the record that lies under a path, after training for it if nothing does."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(train())), encoding="utf-8")
        partial.rename(path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    alerts = tuple(Raised(**alert | {"layers": tuple(alert["layers"])}) for alert in plain["alerts"])
    return {**plain, "alerts": alerts}


@dataclass(frozen=True)
class Outcome:
    """A faulty run, judged."""

    name: str
    first: Raised | None
    is_right: bool
    before: int
    """Alerts of severity warning or worse before the fault."""
    steps: dict[str, float]
    """From the fault to the first alert and to each sign; infinity for never."""


def judge(name: str, kind: Kind, record: Record, limits: dict[str, float]) -> Outcome:
    """Compare the first alert with what was wrong and with plain thresholds."""
    after = record.after_fault()
    first = after[0] if after else None
    steps = {sign.name: sign.first(record, limits[sign.name], record.begin) - record.begin for sign in SIGNS}
    steps["alert"] = first.step - record.begin if first else math.inf
    # An alert that rests on readings before the fault is not about the fault.
    is_right = first is not None and first.rule in kind.right and first.since > record.begin
    return Outcome(name, first, is_right, len(record.serious()) - len(after), steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=20, help="steps between readings")
    parser.add_argument("--only", default="*", help="pattern on KIND: TASK, OPTIMIZER: STRENGTH")
    parser.add_argument("--out", type=Path, default=Path("runs/value"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    store = Store(options.out, options.every)
    chosen = {
        f"{kind.name}: {case.recipe.name}: {case.how}": (kind, case)
        for kind in KINDS
        for case in kind.cases
        if options.every <= 20 or case.recipe.is_cheap
    }
    chosen = {name: pair for name, pair in chosen.items() if fnmatch(name, options.only)}
    recipes = dict.fromkeys(case.recipe for _, case in chosen.values())
    twins = {recipe: store.record(f"healthy: {recipe.name}", recipe.at(options.every)) for recipe in recipes}
    limits = {
        task: {sign.name: sign.limit(twin for recipe, twin in twins.items() if recipe.task == task) for sign in SIGNS}
        for task in dict.fromkeys(recipe.task for recipe in recipes)
    }
    outcomes: dict[Kind, list[Outcome]] = {}
    for name, (kind, case) in chosen.items():
        record = store.record(name, case.recipe.at(options.every), case)
        outcomes.setdefault(kind, []).append(judge(name, kind, record, limits[case.recipe.task]))
    print("\n".join(["", *_each(outcomes), "", *_table(outcomes), "", *_loosened(limits)]))
    print("\n".join([*_summary(outcomes, twins), "", *_wrong(outcomes)]))


def _each(outcomes: dict[Kind, list[Outcome]]) -> Iterator[str]:
    """Yield a line for each faulty run."""
    yield f"| faulty run | first warning | steps | {' | '.join(sign.name for sign in SIGNS)} |"
    yield "|---|---|" + "---|" * (1 + len(SIGNS))
    for outcome in (outcome for group in outcomes.values() for outcome in group):
        rule = f"{outcome.first.rule}, {'right' if outcome.is_right else 'wrong'}" if outcome.first else "none"
        cells = (_steps(outcome.steps[name]) for name in ("alert", *(sign.name for sign in SIGNS)))
        yield f"| {outcome.name} | {rule} | {' | '.join(cells)} |"


def _table(outcomes: dict[Kind, list[Outcome]]) -> Iterator[str]:
    """Yield a line for each kind; steps are those within which half of its runs have shown it."""
    yield f"| kind | for | runs | alert in | right cause first | first warning | {' | '.join(s.name for s in SIGNS)} |"
    yield "|---|---|---|---|---|---|" + "---|" * len(SIGNS)
    for kind, group in outcomes.items():
        found = [outcome for outcome in group if outcome.first]
        right = f"{sum(outcome.is_right for outcome in found)} of {len(found)}"
        role = "reports" if KINDS.index(kind) % 2 else "sets"
        cells = (_steps(_middle(group, name)) for name in ("alert", *(sign.name for sign in SIGNS)))
        yield f"| {kind.name} | {role} | {len(group)} | {len(found)} | {right} | {' | '.join(cells)} |"


def _is_early(group: Sequence[Outcome]) -> bool:
    alert = _middle(group, "alert")
    return math.isfinite(alert) and alert <= _middle(group, "validation loss")


def _middle(group: Iterable[Outcome], name: str) -> float:
    """Return the steps within which half of the runs have shown it."""
    return median_low([outcome.steps[name] for outcome in group])


def _steps(steps: float) -> str:
    return f"{steps:.0f}" if math.isfinite(steps) else "never"


def _wrong(outcomes: dict[Kind, list[Outcome]]) -> Iterator[str]:
    """Yield the message of each first warning that names another cause."""
    for outcome in (outcome for group in outcomes.values() for outcome in group):
        if outcome.first and not outcome.is_right:
            yield f"{outcome.name}: {outcome.first.rule}: {outcome.first.message}"


def _loosened(limits: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield a line for each threshold that had to be loosened, because a healthy twin trips it."""
    for sign in SIGNS:
        loose = [
            f"{limit:g} for {task}"
            for task, of_task in limits.items()
            if (limit := of_task[sign.name]) > sign.limits[0]
        ]
        yield f"Threshold on {sign.name}: {sign.limits[0]:g}{''.join(f', {text}' for text in loose)}."


def _summary(outcomes: dict[Kind, list[Outcome]], twins: dict[Recipe, Record]) -> Iterator[str]:
    """Yield how often the first cause is right, how often it is early, and how often healthy twins raise a warning."""
    for role, kinds in (("", KINDS), (" that set thresholds", KINDS[::2]), (" that report", KINDS[1::2])):
        groups = [outcomes[kind] for kind in kinds if kind in outcomes]
        found = [outcome for group in groups for outcome in group if outcome.first]
        early = sum(_is_early(group) for group in groups)
        yield (
            f"Of kinds{role}: an alert in {len(found)} of {sum(map(len, groups))} runs, the right cause first in "
            f"{sum(outcome.is_right for outcome in found)}; no later than the validation loss in {early} of "
            f"{len(groups)} kinds."
        )
    runs = [outcome for group in outcomes.values() for outcome in group]
    in_time = [outcome for outcome in runs if _is_early([outcome])]
    alone = sum(math.isinf(outcome.steps["validation loss"]) for outcome in in_time)
    unseen = sum(all(map(math.isinf, outcome.steps.values())) for outcome in runs)
    yield (
        f"Alert no later than the validation loss in {len(in_time)} of {len(runs)} runs, in {alone} of which the loss "
        f"never shows it; nothing shows it in {unseen} runs."
    )
    yield f"Runs with a warning before the fault: {sum(outcome.before > 0 for outcome in runs)} of {len(runs)}."
    noisy = [
        f"{recipe.name} ({', '.join(a.rule for a in twin.serious())})"
        for recipe, twin in twins.items()
        if twin.serious()
    ]
    yield f"Healthy twins with a warning: {len(noisy)} of {len(twins)}{''.join(f'; {text}' for text in noisy)}."


if __name__ == "__main__":
    main()
