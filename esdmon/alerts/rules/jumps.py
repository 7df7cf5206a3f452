"""Find layers that jump from their own baseline."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile
from statistics import median
from typing import Literal, TypeAlias

from esdmon.alerts.rule import Finding, History, evidence_of, value_of
from esdmon.alerts.rules.baseline import WARM_UP, fit_baseline
from esdmon.records import LayerReport, Severity

Quantity: TypeAlias = Callable[[LayerReport], float]
Direction: TypeAlias = Literal["up", "down"]

SIGMAS = 5.0
"""Standard deviations of a layer's own scatter that a jump must exceed, besides the factor. Our choice: some layers
scatter by a factor of two without a fault."""

RAISED = 1.5
"""Factor above which a learning rate or a weight decay counts as raised. Our choice."""
_RISEN = 4.0
"""Factor between the learning rate now and in the baseline, above which the baseline says nothing about the layer. In a
linear warm-up the factor is 2.6 at most. Our choice."""
_LEARNED = 0.5
"""`start_ratio`, ‖W − W₀‖/‖W‖, from which a layer has learned. Our choice."""


def jumps(
    history: History, quantity: Quantity, direction: Direction, *, factor: float, back: float
) -> Iterator[tuple[LayerReport, float, float]]:
    """Yield (reading, value, expected value) for each layer that jumps, or has not returned from an earlier jump."""
    found = jumped(history, quantity, direction, factor)
    for name, readings in history.layers.items():
        value = quantity(readings[-1])
        if name in history.firing:
            before = history.firing[name]["before"]
            if value > before * back if direction == "up" else value * back < before:
                yield readings[-1], value, before
        elif name in found:
            yield readings[-1], value, found[name]


def jumps_after_warm_up(
    history: History, quantity: Quantity, direction: Direction, *, factor: float, back: float
) -> Iterator[tuple[LayerReport, float, float]]:
    """Yield what `jumps` does, without layers that begin to jump while the learning rate warms up."""
    for now, value, before in jumps(history, quantity, direction, factor=factor, back=back):
        if now.name in history.firing or not is_warming_up(now, history.baseline[now.name]):
            yield now, value, before


def jumped(history: History, quantity: Quantity, direction: Direction, factor: float) -> dict[str, float]:
    """Return the expected value of each layer whose value differs from it by more than the factor and the scatter."""
    found = {}
    for name, readings in history.layers.items():
        # The first readings of a run have no step ratio.
        before = list(dropwhile(math.isnan, map(quantity, history.baseline[name])))
        value = quantity(readings[-1])
        # A jump from the baseline is one from the median too, which takes a thirtieth of the time to compute.
        if not before or not _is_beyond(value, median(before), direction, factor):
            continue
        fitted = fit_baseline(before)
        if fitted is not None:
            expected = fitted.high if direction == "up" else fitted.low
            if _is_beyond(value, expected, direction, max(factor, fitted.scatter**SIGMAS)):
                found[name] = expected
    return found


def _is_beyond(value: float, expected: float, direction: Direction, factor: float) -> bool:
    return value > factor * expected if direction == "up" else factor * value < expected


def frobenius(layer: LayerReport) -> float:
    """Return the Frobenius norm."""
    return value_of(layer, "frobenius_norm")


def usual_rate(baseline: Sequence[LayerReport]) -> float:
    """Return the median learning rate of a baseline; NaN where it is not known."""
    return median([layer.learning_rate for layer in baseline if layer.learning_rate > 0] or [math.nan])


def is_warming_up(now: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether a layer hardly learned in its baseline, because the learning rate was low there and still rising.

    The learning rate must be over four times its median in the baseline. Since the baseline it must have risen by no
    larger a factor than within the baseline.
    """
    rate = now.learning_rate
    rates = [layer.learning_rate for layer in baseline if layer.learning_rate > 0]
    ways = [layer.start_ratio for layer in baseline if layer.start_ratio >= 0]
    if not (rates and ways):
        return False
    is_steady = rate * rates[0] <= rates[-1] ** 2
    return rate > _RISEN * median(rates) and is_steady and median(ways) < _LEARNED


def before_rise(now: LayerReport, baseline: Sequence[LayerReport]) -> Sequence[LayerReport]:
    """Return the readings of a baseline before the learning rate began to rise to that of now.

    While it rises slowly, later readings would make the rise itself the expected course. Where fewer than a baseline
    needs are from before, as in a warm-up from the start, all of them are returned.
    """
    lowest = min((layer.learning_rate for layer in baseline if layer.learning_rate > 0), default=math.nan)
    before = [layer for layer in baseline if layer.learning_rate <= RAISED * lowest]
    return before if now.learning_rate > RAISED * lowest and len(before) >= WARM_UP else baseline


def usual_decay(baseline: Sequence[LayerReport]) -> float:
    """Return the median weight decay of a baseline; NaN where it is not known."""
    return median([layer.weight_decay for layer in baseline if layer.weight_decay >= 0] or [math.nan])


def raised(name: str, value: float, before: float) -> str:
    """Return the end of a message: that a setting of the optimizer was raised; empty if it was not."""
    return f"; its {name} rose from {before:.2g} to {value:.2g}" if value > RAISED * before else ""


def raised_rate(now: LayerReport, baseline: Sequence[LayerReport]) -> str:
    """Return the end of a message: that the learning rate is above that of the baseline; empty if it is not."""
    return raised("learning rate", now.learning_rate, usual_rate(baseline))


def finding(now: LayerReport, what: str, before: float, severity: Severity | None = None) -> Finding:
    """Return a finding with the measures of size and rank as its evidence."""
    measures = evidence_of(now, "spectral_norm", "frobenius_norm", "stable_rank", "matrix_entropy", "trap")
    return Finding(now.name, what, measures | {"before": before}, severity)
