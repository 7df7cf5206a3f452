"""Find layers that jump from their own baseline."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile
from statistics import median
from typing import Literal, TypeAlias

from esdmon.alerts.rule import Finding, History, evidence_of, value_of
from esdmon.alerts.rules.baseline import fit_baseline
from esdmon.records import LayerReport, Severity

Quantity: TypeAlias = Callable[[LayerReport], float]
Direction: TypeAlias = Literal["up", "down"]

SIGMAS = 5.0
"""Standard deviations of a layer's own scatter that a jump must exceed, besides the factor. Our choice: some layers
scatter by a factor of two without a fault."""

RAISED = 1.5
"""Factor from which a learning rate or a weight decay has been raised. Our choice."""
_RISEN = 4.0
"""Factor on the learning rate of a baseline from which the baseline says nothing of a layer now. In a linear warm-up
it is 2.6 at most. Our choice."""
_LEARNED = 0.5
"""‖W − W₀‖/‖W‖ from which a layer has learned. Our choice."""


def jumps(
    history: History, quantity: Quantity, direction: Direction, *, factor: float, back: float
) -> Iterator[tuple[LayerReport, float, float]]:
    """Yield (reading, value, expected value) for each layer that jumps, or has not come back from its jump."""
    found = jumped(history, quantity, direction, factor)
    for name, readings in history.layers.items():
        value = quantity(readings[-1])
        if name in history.firing:
            before = history.firing[name]["before"]
            if value > before * back if direction == "up" else value * back < before:
                yield readings[-1], value, before
        elif name in found:
            yield readings[-1], value, found[name]


def jumped(history: History, quantity: Quantity, direction: Direction, factor: float) -> dict[str, float]:
    """Return the expected value of each layer that is farther from it than the factor and its own scatter allow."""
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
    """Return whether a layer hardly learned in its baseline, since the learning rate was low there and still rising.

    It is over four times the median of the baseline, and has risen since the baseline by no larger a factor than in it.
    """
    rate = now.learning_rate
    rates = [layer.learning_rate for layer in baseline if layer.learning_rate > 0]
    ways = [layer.start_ratio for layer in baseline if layer.start_ratio >= 0]
    if not (rates and ways):
        return False
    is_steady = rate * rates[0] <= rates[-1] ** 2
    return rate > _RISEN * median(rates) and is_steady and median(ways) < _LEARNED


def usual_decay(baseline: Sequence[LayerReport]) -> float:
    """Return the median weight decay of a baseline; NaN where it is not known."""
    return median([layer.weight_decay for layer in baseline if layer.weight_decay >= 0] or [math.nan])


def raised(name: str, value: float, before: float) -> str:
    """Return that a setting of the optimizer was raised, as the end of a message; nothing where it was not."""
    return f"; its {name} rose from {before:.2g} to {value:.2g}" if value > RAISED * before else ""


def finding(now: LayerReport, what: str, before: float, severity: Severity | None = None) -> Finding:
    """Return a finding with the measures of size and rank as its evidence."""
    measures = evidence_of(now, "spectral_norm", "frobenius_norm", "stable_rank", "matrix_entropy", "trap")
    return Finding(now.name, what, measures | {"before": before}, severity)
