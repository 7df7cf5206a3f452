"""Alert rules: pure functions of the history that say what is wrong now.

A rule is asked after each reading and answers with all that it finds, each time anew; `AlertBook` tells what is new
and what has ended. A rule counts only readings between which the weight moved: a layer that does not train says the
same thing again, which is no further evidence.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from esdmon.records import Alert, LayerReport, Severity
from esdmon.spectrum import Phase

History: TypeAlias = Mapping[str, Sequence[LayerReport]]
"""The last readings of each layer by its name, oldest first."""

SUSTAINED = 3
"""Readings in a row, between which the weight moved, before an alert is raised. Our choice, against single outliers."""
MOVED = 1e-6
"""‖ΔW‖/‖W‖ above which a weight has moved: ten times the rounding of float32. Our choice."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """A named `(history) -> alerts that hold now`."""

    name: str
    find: Callable[[History], Iterable[Alert]]


def over_regularized(history: History) -> Iterable[Alert]:
    """Alpha below 2 by more than its uncertainty, meaningful, three readings in a row.

    An exponent below 2 is a tail heavier than the critical one, where generalisation turns worse: Martin & Hinrichs,
    "SETOL" (2025). The uncertainty is the range over near-best fits and two standard errors. A rank collapse mutes it:
    its few remaining eigenvalues make any alpha.
    """
    for run in _sustained(history, lambda layer: layer.over_regularized):
        now = run[-1]
        alpha, high, stderr = (now.measures.get(name, math.nan) for name in ("alpha", "alpha_high", "alpha_stderr"))
        yield _alert(
            "over_regularized",
            "warning",
            run,
            f"{now.name}: alpha {alpha:.2f} (at most {high:.2f} ± {stderr:.2f}) is below 2 in "
            f"{len(run)} readings since step {run[0].step}: the layer is over-regularised. Lower the learning rate or "
            "the weight decay, or raise the batch size; if the validation loss still falls, wait.",
            ("alpha", "alpha_high", "alpha_stderr", "n_tail", "ks_distance"),
        )


def rank_collapse(history: History) -> Iterable[Alert]:
    """A share of the eigenvalues is zero, three readings in a row: the sixth phase."""
    for run in _sustained(history, lambda layer: layer.phase is Phase.RANK_COLLAPSE):
        now = run[-1]
        rank = now.measures.get("hard_rank", math.nan)
        yield _alert(
            "rank_collapse",
            "error",
            run,
            f"{now.name}: rank {rank:.0f} of {now.n_eigenvalues} in {len(run)} readings since step {run[0].step}: the "
            "layer has collapsed. Weight decay far too strong is the usual cause; lower it, or the learning rate.",
            ("hard_rank", "stable_rank", "matrix_entropy"),
        )


def non_finite(history: History) -> Iterable[Alert]:
    """NaN or infinity in a weight: at once, since no training comes back from it."""
    for readings in history.values():
        now = readings[-1]
        if now.status == "nonfinite":
            since = next((later.step for later in reversed(readings) if later.status != "nonfinite"), None)
            known = "" if since is None else f"; at step {since} it was not so"
            yield _alert(
                "non_finite",
                "error",
                [now],
                f"{now.name}: {now.reason} at step {now.step}{known}. Go back to a checkpoint before it, and lower the "
                "learning rate or clip the gradients.",
                (),
            )


BUILT_IN = (
    AlertRule("over_regularized", over_regularized),
    AlertRule("rank_collapse", rank_collapse),
    AlertRule("non_finite", non_finite),
)


def _sustained(history: History, wrong: Callable[[LayerReport], bool]) -> Iterable[list[LayerReport]]:
    """For each layer the run of wrong readings up to now, where it is long enough."""
    for readings in history.values():
        run: list[LayerReport] = []
        for layer in reversed(readings):
            # A reading that failed says nothing: it neither counts nor ends a run.
            if layer.status != "ok" or layer.update_ratio <= MOVED:
                continue
            if not wrong(layer):
                break
            run.insert(0, layer)
        if len(run) >= SUSTAINED:
            yield run


def _alert(rule: str, severity: Severity, run: Sequence[LayerReport], message: str, evidence: Sequence[str]) -> Alert:
    now = run[-1]
    return Alert(
        id=f"{rule}:{now.name}",
        rule=rule,
        severity=severity,
        state="firing",
        layer=now.name,
        layers=(now.name,),
        step=now.step,
        since=run[0].step,
        message=message,
        evidence={name: now.measures[name] for name in evidence if name in now.measures},
    )
