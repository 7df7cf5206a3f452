"""Find layers whose steps or norms leap, from samples taken between readings.

A leap raises no alert: it brings a reading forward. So the thresholds may be low; what they cost is a reading.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from esdmon.schedule.step_sample import StepSample

FACTOR = 3.0
"""A leap is beyond this factor times the largest of the recent values. Our choice."""
_KEPT = 16  # values that a new one is compared with
_KNOWN = 6  # values before which nothing is a leap
_LEAST = 0.02  # relative change of a norm below which nothing is a leap


@dataclass(slots=True)
class _Recent:
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    changes: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """|Δ ln ‖W‖| from sample to sample."""
    norm: float = math.nan

    def leaps(self, ratio: float, change: float) -> bool:
        """Return whether a step, or the change of a norm, is far beyond the recent ones, or a moving weight stops."""
        if len(self.changes) < _KNOWN:
            return False
        has_stopped = ratio == 0 and min(self.ratios) > 0
        return has_stopped or ratio > FACTOR * max(self.ratios) or change > FACTOR * max(_LEAST, *self.changes)


@final
class Leaps:
    """Keep the recent samples of each layer, and find those that leap."""

    def __init__(self) -> None:
        self._recent: dict[str, _Recent] = {}

    def take(self, samples: Mapping[str, StepSample]) -> list[str]:
        """Return the layers that leap from their recent samples to these."""
        found = []
        for name, (norm, ratio, _) in samples.items():
            recent = self._recent.setdefault(name, _Recent())
            change = abs(math.log(norm / recent.norm)) if norm > 0 and recent.norm > 0 else math.nan
            if recent.leaps(ratio, change):
                found.append(name)
            if math.isfinite(ratio):
                recent.ratios.append(ratio)
            if math.isfinite(change):
                recent.changes.append(change)
            recent.norm = norm
        return found

    def state_dict(self) -> dict[str, list[Any]]:
        """Return the recent values of each layer, as plain data."""
        return {name: [list(each.ratios), list(each.changes), each.norm] for name, each in self._recent.items()}

    def prepare(self, state: Mapping[str, list[Any]]) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        recent = {
            name: _Recent(deque(ratios, _KEPT), deque(changes, _KEPT), float(norm))
            for name, (ratios, changes, norm) in state.items()
        }

        def restore() -> None:
            self._recent = recent

        return restore
