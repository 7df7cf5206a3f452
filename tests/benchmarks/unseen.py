"""Record alerts on faults of weights that do not change the held-out accuracy, and their later consequences.

    python -m tests.benchmarks.unseen [--seeds 3] [--only PATTERN] [--out runs/unseen]

Each run is carried on to its end, so that what follows an alert is seen: accuracy and loss on held-back examples, the
accuracy under noise on the inputs, and that after a short fine-tuning of the final weights on other labels, all
beside the healthy twin of the same seed. *Worse* than healthy is what lies below the twin by more than two points and
below all twins of the recipe; *better* is the reverse, by which one can see how often chance makes it worse. Kinds of
faults alternate: the first, third, … may set severities of rules, the others only report. A run whose record lies in
`--out` is not trained again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import inf, isfinite, isinf
from pathlib import Path
from statistics import fmean, median_low

import torch
from torch import Tensor, nn

from tests.benchmarks.faults import (
    CNN,
    LSTM,
    MLP_ADAMW,
    MLP_SGD,
    MUON,
    RESNET,
    SEED,
    SMALL_DECODER,
    Case,
    Kind,
    Recipe,
    Training,
    begun_again,
    cut_off,
    decayed,
    kind,
    not_loaded,
    small_batches,
)
from tests.benchmarks.healthy import OPTIMIZERS, batches
from tests.benchmarks.value import SERIOUS, SIGNS, Point, Raised, follow, stored

_TUNED = 60  # steps of fine-tuning
_LAST = 5  # evaluations at the end whose mean is the accuracy that a run has come to
_POINTS = 2.0  # of accuracy
_LOSS, _ACCURACY = SIGNS[:2]
_SGD, _ADAMW = (replace(recipe, after=1200) for recipe in (MLP_SGD, MLP_ADAMW))
_LONG_SGD, _LONG_ADAMW, _LONG_MUON = (replace(recipe, after=2400) for recipe in (MLP_SGD, MLP_ADAMW, MUON))
_SMALL = replace(SMALL_DECODER, after=800)
_FF = "blocks.layers.0.linear"
KINDS = (
    kind(
        "weight decay of one layer",
        "norm_decay scale_collapse entropy_collapse rank_collapse over_regularized",
        (_SGD, "second, 0.02", decayed(0.02, "3.weight")),
        (_ADAMW, "first, 2", decayed(2, "1.weight")),
        (CNN, "fc1, 0.04", decayed(0.04, "fc1.weight")),
        (RESNET, "a convolution, 0.01", decayed(0.01, "8.inner.0.weight")),
        (_SMALL, "feed-forward, 4", decayed(4, f"{_FF}1.weight")),
        (LSTM, "recurrent, 1", decayed(1, "cell.weight_hh_l0")),
        (MUON, "second, 0.1", decayed(0.1, "3.weight")),
    ),
    kind(
        "long training with decay",
        "norm_decay scale_collapse entropy_collapse rank_collapse over_regularized",
        (_LONG_SGD, "0.005", decayed(0.005)),
        (_LONG_ADAMW, "0.5", decayed(0.5)),
        (_LONG_MUON, "0.03", decayed(0.03)),
    ),
    kind(
        "long training in small batches",
        "over_regularized update_surge stable_rank_drop",
        (_LONG_SGD, "of 4", small_batches(4)),
        (_LONG_ADAMW, "of 4", small_batches(4)),
        (_LONG_MUON, "of 4", small_batches(4)),
        (CNN, "of 8", small_batches(8)),
        (_SMALL, "of 4", small_batches(4)),
    ),
    kind(
        "a layer begun again",
        "layer_reset phase_regression",
        (_SGD, "second", begun_again("3.*")),
        (_ADAMW, "first", begun_again("1.*")),
        (CNN, "fc1", begun_again("fc1.*")),
        (RESNET, "a convolution", begun_again("8.inner.0.*")),
        (_SMALL, "feed-forward", begun_again(f"{_FF}1.*")),
        (LSTM, "head", begun_again("head.*")),
        (MUON, "second", begun_again("3.*")),
    ),
    kind(
        "a layer not loaded",
        "layer_reset phase_regression",
        (_SGD, "second", not_loaded("3.*")),
        (_ADAMW, "first", not_loaded("1.*")),
        (CNN, "fc2", not_loaded("fc2.*")),
        (RESNET, "last block", not_loaded("8.*")),
        (_SMALL, "feed-forward", not_loaded(f"{_FF}1.*")),
        (MUON, "second", not_loaded("3.*")),
    ),
    kind(
        "a layer cut off",
        "dead_layer",
        (_SGD, "after the first", cut_off("1")),
        (_ADAMW, "after the first", cut_off("1")),
        (CNN, "after conv2", cut_off("conv2")),
        (_SMALL, "feed-forward", cut_off(f"{_FF}2")),
        (MUON, "after the first", cut_off("1")),
    ),
)
AFTERWARDS = ("accuracy at the end", "with noise", "fine-tuned")


@dataclass(frozen=True)
class Run:
    """What was seen of a training, and of the weights that it ended with."""

    begin: int
    alerts: tuple[Raised, ...]
    series: dict[str, list[Point]]
    afterwards: dict[str, float]
    """Percent of held-back examples, by name; and `loss`."""

    def first(self, *severities: str) -> Raised | None:
        """Return the first alert after the fault of one of these severities."""
        return next((a for a in self.alerts if a.step > self.begin and a.severity in severities), None)


def do(recipe: Recipe, case: Case | None) -> Run:
    """Train to the end, with the fault of the case or with none, and try what the weights are good for."""
    training = Training(recipe)
    alerts, series = follow(training, case, every=20)
    last = {name: fmean(value for _, value in series[name][-_LAST:]) for name in ("accuracy", "loss")}
    afterwards = {
        "loss": last["loss"],
        AFTERWARDS[0]: 100 * last["accuracy"],
        AFTERWARDS[1]: 100 * _with_noise(training),
        AFTERWARDS[2]: 100 * _fine_tuned(training),
    }
    return Run(recipe.begin, alerts, {name: series[name] for name in ("accuracy", "loss")}, afterwards)


def _final(training: Training) -> nn.Module:
    """Return the final weights in a network of its own, which no hook of a fault holds."""
    model = training.recipe.make().model
    model.load_state_dict(training.model.state_dict())
    return model


def _with_noise(training: Training) -> float:
    """Return the accuracy where pictures have half as much noise as signal, and one character in seven is another."""
    draw = torch.Generator().manual_seed(SEED)
    inputs, targets = training.task.held_back
    if inputs.is_floating_point():
        spoiled = inputs + 0.7 * inputs.std() * torch.randn(inputs.shape, generator=draw)
    else:
        other = torch.randint(int(inputs.max()) + 1, inputs.shape, generator=draw)
        spoiled = torch.where(torch.rand(inputs.shape, generator=draw) < 1 / 7, other, inputs)
    return _accuracy(_final(training), spoiled, targets)


def _fine_tuned(training: Training) -> float:
    """Return the accuracy after some steps in which each class has the label of the next."""
    recipe, task, model = training.recipe, training.task, _final(training)
    classes = int(task.data[1].max()) + 1
    given = list(task.given(model))
    optimizer = OPTIMIZERS[recipe.optimizer](given)
    for group in optimizer.param_groups:
        group["lr"] *= task.lr
    for inputs, targets in batches(task.data, recipe.batch_size, _TUNED, seed=recipe.seed + 1):
        optimizer.zero_grad()
        task.loss(model, inputs, (targets + 1) % classes).backward()  # type: ignore[no-untyped-call]
        if recipe.clip:
            nn.utils.clip_grad_norm_(given, 1.0)
        optimizer.step()
    inputs, targets = task.held_back
    return _accuracy(model, inputs, (targets + 1) % classes)


def _accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = model(inputs).flatten(0, -2).argmax(-1) == targets.flatten()
    return float(right.float().mean())


def recorded(path: Path, recipe: Recipe, case: Case | None = None) -> Run:
    """Return what lies under that path, after training it if nothing does."""

    def train() -> Run:
        start = time.perf_counter()
        run = do(recipe, case)
        found = ", ".join(f"{a.rule} {a.severity} at {a.step} in {a.layers}" for a in run.alerts) or "no alert"
        figures = ", ".join(f"{name} {value:.3g}" for name, value in run.afterwards.items())
        print(f"{path.stem}: {found}; {figures} ({time.perf_counter() - start:.0f} s)", flush=True)
        return run

    return Run(**stored(path, train))


@dataclass(frozen=True)
class Outcome:
    """A faulty run beside its healthy twin."""

    name: str
    run: Run
    twin: Run
    is_right: bool
    """Whether the first warning names the cause."""
    shown: dict[str, float]
    """Steps from the fault until the loss and the accuracy show it, and until the first alert; infinity for never."""
    worse: frozenset[str]
    """What it is clearly worse in than healthy runs, of `AFTERWARDS`."""
    better: frozenset[str]

    @property
    def is_unseen(self) -> bool:
        """Whether an alert came before the accuracy showed the fault."""
        return self.shown["alert"] < self.shown[_ACCURACY.name]

    def change(self, name: str) -> float:
        return self.run.afterwards[name] - self.twin.afterwards[name]


def judge(name: str, right: Iterable[str], run: Run, twin: Run, twins: Sequence[Run]) -> Outcome:
    """Compare a run with its own twin, and with all twins of its recipe."""
    first = run.first(*SERIOUS)
    shown = {sign.name: sign.first(run, sign.limit(twins), run.begin) - run.begin for sign in (_LOSS, _ACCURACY)}
    shown["alert"] = first.step - run.begin if first else inf
    worse, better = (
        frozenset(
            what
            for what in AFTERWARDS
            if sign * run.afterwards[what] < sign * twin.afterwards[what] - _POINTS
            and sign * run.afterwards[what] < min(sign * each.afterwards[what] for each in twins)
        )
        for sign in (1, -1)
    )
    return Outcome(name, run, twin, first is not None and first.rule in right, shown, worse, better)


def _compared(group: Collection[Outcome], what: str) -> str:
    """Return in how many runs something is worse and in how many it is better."""
    return f"{sum(what in o.worse for o in group)} / {sum(what in o.better for o in group)}"


def each_kind(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    """Yield a line for each kind: steps within which half of its runs show it, and what comes afterwards.

    That is the mean difference from the twins, in how many runs it is worse, and in how many it is better.
    """
    yield (
        "| kind | for | runs | alert in | right cause first | first warning | validation loss | accuracy | "
        f"alert before accuracy | {' | '.join(AFTERWARDS)} |"
    )
    yield "|---|---|---|---|---|---|---|---|---|" + "---|" * len(AFTERWARDS)
    for place, (kind_name, group) in enumerate(outcomes.items()):
        found = [outcome for outcome in group if not isinf(outcome.shown["alert"])]
        steps = (
            f"{value:.0f}" if isfinite(value := median_low([o.shown[sign] for o in group])) else "never"
            for sign in ("alert", _LOSS.name, _ACCURACY.name)
        )
        cells = (f"{fmean(o.change(what) for o in group):+.1f}, {_compared(group, what)}" for what in AFTERWARDS)
        right = f"{sum(o.is_right for o in found)} of {len(found)}"
        yield (
            f"| {kind_name} | {'reports' if place % 2 else 'sets'} | {len(group)} | {len(found)} | {right} | "
            f"{' | '.join(steps)} | {sum(o.is_unseen for o in found)} | {' | '.join(cells)} |"
        )


def each_rule(outcomes: Iterable[Outcome], twins: Iterable[Run]) -> Iterator[str]:
    """Yield a line for each rule and severity: in how many runs it was raised, and what followed in how many."""
    raised: dict[tuple[str, str], dict[str, Outcome]] = {}
    for outcome in outcomes:
        for alert in outcome.run.alerts:
            if alert.step > outcome.run.begin:
                raised.setdefault((alert.rule, alert.severity), {})[outcome.name] = outcome
    healthy = [{(alert.rule, alert.severity) for alert in twin.alerts} for twin in twins]
    yield f"| rule | severity | runs | {' | '.join(AFTERWARDS)} | healthy runs |"
    yield "|---|---|---|" + "---|" * (len(AFTERWARDS) + 1)
    for (rule, severity), group in sorted(raised.items()):
        cells = (_compared(group.values(), what) for what in AFTERWARDS)
        quiet = sum((rule, severity) in each for each in healthy)
        yield f"| {rule} | {severity} | {len(group)} | {' | '.join(cells)} | {quiet} of {len(healthy)} |"


def each_run(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a line for each faulty run: what was raised, when accuracy showed it, and the differences from its twin."""
    for o in outcomes:
        alerts = [f"{a.rule} {a.severity} +{a.step - o.run.begin}" for a in o.run.alerts if a.step > o.run.begin]
        changes = ", ".join(f"{what} {o.change(what):+.1f}{' worse' * (what in o.worse)}" for what in AFTERWARDS)
        loss = o.run.afterwards["loss"] / o.twin.afterwards["loss"]
        shown = f"accuracy +{o.shown[_ACCURACY.name]}"
        yield f"{o.name}: {', '.join(alerts) or 'no alert'}; {shown}; {changes}; loss ×{loss:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="*", help="pattern on KIND: TASK, OPTIMIZER: STRENGTH")
    parser.add_argument("--out", type=Path, default=Path("runs/unseen"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    runs: list[tuple[Kind, str, Recipe, Run]] = []
    twins: dict[Recipe, Run] = {}
    for seed in range(SEED, SEED + options.seeds):
        for each in KINDS:
            for case in each.cases:
                if fnmatch(name := f"{each.name}: {case.recipe.name}: {case.how}", options.only):
                    recipe = replace(case.recipe, seed=seed)
                    twins[recipe] = recorded(options.out / f"healthy_{recipe.name}_{recipe.after}_{seed}.json", recipe)
                    path = options.out / f"{each.name}_{recipe.name}_{case.how}_{seed}.json"
                    runs.append((each, f"{name}: {seed}", recipe, recorded(path, recipe, case)))
    outcomes: dict[str, list[Outcome]] = {each.name: [] for each in KINDS}
    for each, name, recipe, run in runs:
        same = [twin for other, twin in twins.items() if replace(other, seed=recipe.seed) == recipe]
        outcomes[each.name].append(judge(name, each.right, run, twins[recipe], same))
    every = [outcome for group in outcomes.values() for outcome in group]
    kept = {name: group for name, group in outcomes.items() if group}
    print("\n".join([*each_run(every), "", *each_kind(kept), "", *each_rule(every, twins.values())]))


if __name__ == "__main__":
    main()
