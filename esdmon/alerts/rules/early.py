"""Find changes of layers that have no baseline yet, by a setting of the optimizer that was raised.

A baseline needs nine readings. Before, the readings alone do not show which change is unusual. But the learning rate
and the weight decay are known exactly: if one is raised, the readings since then are compared with those before.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from esdmon.alerts.rule import History
from esdmon.alerts.rules.baseline import WARM_UP
from esdmon.alerts.rules.jumps import RAISED, Quantity
from esdmon.records import LayerReport

Setting: TypeAlias = Callable[[LayerReport], float]
_KNOWN = 2  # readings before a raise, which show whether the setting was rising before; our choice
_STEADY = 1.1  # times the square of the factors by which it rose before, up to which a rise goes on; our choice
_LEARNED = 0.3  # ‖W − W₀‖/‖W‖ from which a low learning rate before was no warm-up by epochs; our choice
_LONG = 0.02  # ‖ΔW‖/‖W‖ of a step that is too long after any learning rate; our choice


class Raise(NamedTuple):
    """A layer without a baseline, one of whose settings was raised."""

    before: Sequence[LayerReport]
    """Its readings before the setting was raised, two or more."""
    since: Sequence[LayerReport]
    """Its readings since then."""
    setting: float
    """The largest value of the setting before."""

    @property
    def now(self) -> LayerReport:
        """Return the latest reading."""
        return self.since[-1]

    @property
    def is_beyond_warm_up(self) -> bool:
        """Return whether the layer had learned before, or moves by far more than the first rate after a warm-up does.

        Some warm-ups raise the learning rate once in an epoch, from a first rate that hardly moves the weights.
        """
        ways = [way for layer in self.before for way in (layer.start_ratio, layer.update_ratio) if way < math.inf]
        return max(ways, default=0.0) > _LEARNED or self.now.step_ratio > _LONG

    def largest(self, quantity: Quantity) -> float:
        """Return the largest value of a quantity before the setting was raised; NaN if it is not known."""
        return max((value for layer in self.before if (value := quantity(layer)) >= 0), default=math.nan)


def learning_rate(layer: LayerReport) -> float:
    """Return the learning rate of a reading."""
    return layer.learning_rate


def weight_decay(layer: LayerReport) -> float:
    """Return the weight decay of a reading."""
    return layer.weight_decay


def is_early(history: History, name: str) -> bool:
    """Return whether a layer has no baseline yet."""
    return len(history.baseline[name]) < WARM_UP


def readings_since_first(history: History, name: str) -> Sequence[LayerReport]:
    """Return the last readings of a layer without those before an alert that has ended."""
    first = history.first[name]
    return [layer for layer in history.layers[name] if layer.step >= first.step]


def early_raises(history: History, setting: Setting) -> Iterator[Raise]:
    """Yield the layers without a baseline and without an alert of the rule in which a setting was raised."""
    for name in history.layers:
        if name not in history.firing and is_early(history, name):
            found = find_raise(readings_since_first(history, name), setting)
            if found is not None:
                yield found


def find_raise(readings: Sequence[LayerReport], setting: Setting) -> Raise | None:
    """Return the readings before and since a setting was raised; None if it was not, or is not known.

    Since then the setting must be above 1.5 times its largest earlier value. It must have jumped: in a warm-up it rises
    from reading to reading by at most the square of the factors before.
    """
    values = [setting(layer) for layer in readings]
    if not all(value >= 0 for value in values):  # NaN where it is not known
        return None
    growths = [_growth(last, now) for last, now in pairwise(values)]
    for number in range(_KNOWN, len(values)):
        usual = max(values[:number])
        is_jump = growths[number - 1] > _STEADY * max(growths[: number - 1]) ** 2
        if is_jump and min(values[number:]) > RAISED * usual:
            return Raise(readings[:number], readings[number:], usual)
    return None


def _growth(last: float, now: float) -> float:
    """Return the factor by which a setting has risen, 1 or more; infinity if it rose from 0."""
    if now <= last:
        return 1.0
    return now / last if last > 0 else math.inf
