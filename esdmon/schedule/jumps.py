"""Find layers whose steps or norms jump, from samples taken between readings.

A jump raises no alert, but only causes an earlier reading. So thresholds can be low: a false jump costs one reading.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from esdmon.schedule.step_sample import StepSample

FACTOR = 3.0
"""A value is a jump if it exceeds this factor times the largest recent value. Our choice."""
_WINDOW = 16  # values that a new one is compared with
_KNOWN = 6  # smallest number of values before a jump can be detected
_MIN_CHANGE = 0.02  # relative change of a norm, or of the distance from the start, below which nothing is a jump
_REPLACED = 0.5  # ‖ΔW‖/‖W‖ from sample to sample, up to which a weight was not replaced


@dataclass(slots=True)
class _Recent:
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    changes: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """|Δ ln ‖W‖| from sample to sample."""
    shifts: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    norm: float = math.nan
    start_ratio: float = math.nan

    def jumps(self, norm: float, ratio: float, change: float) -> bool:
        """Return whether a step or a norm jumps, or a weight has stopped moving or is no longer finite."""
        if math.isfinite(self.norm) and not math.isfinite(norm):
            return True
        if len(self.changes) < _KNOWN:
            return False
        has_stopped = ratio == 0 and min(self.ratios) > 0
        has_changed = change > FACTOR * max(_MIN_CHANGE, *self.changes)
        return has_stopped or has_changed or ratio > FACTOR * max(self.ratios)

    def is_replaced(self, shift: float, start_ratio: float) -> bool:
        """Return whether a weight was replaced by other values since the last sample, or reset to its start."""
        if len(self.changes) < _KNOWN:
            return False
        usual = FACTOR * max(self.shifts, default=math.inf)
        return shift > max(_REPLACED, usual) or self.start_ratio - start_ratio > max(_MIN_CHANGE, usual)


@final
class JumpDetector:
    """The recent samples of each layer, to find layers that jump."""

    def __init__(self) -> None:
        self._recent: dict[str, _Recent] = {}

    def take(self, samples: Mapping[str, StepSample]) -> list[str]:
        """Add samples, and return the layers that jump.

        If a weight is replaced, all layers are returned, since only readings of the same step show whether the others
        were replaced too.
        """
        found, is_replaced = [], False
        for name, (norm, ratio, _, shift, start_ratio, _) in samples.items():
            recent = self._recent.setdefault(name, _Recent())
            change = abs(math.log(norm / recent.norm)) if norm > 0 and recent.norm > 0 else math.nan
            if recent.jumps(norm, ratio, change):
                found.append(name)
            is_replaced = is_replaced or recent.is_replaced(shift, start_ratio)
            for value, kept in ((ratio, recent.ratios), (change, recent.changes), (shift, recent.shifts)):
                if math.isfinite(value):
                    kept.append(value)
            recent.norm, recent.start_ratio = norm, start_ratio
        return list(samples) if is_replaced else found

    def state_dict(self) -> dict[str, list[Any]]:
        """Return the recent values of each layer, as plain data."""
        return {
            name: [list(each.ratios), list(each.changes), each.norm, list(each.shifts), each.start_ratio]
            for name, each in self._recent.items()
        }

    def prepare(self, state: Mapping[str, list[Any]]) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        recent = {
            name: _Recent(
                deque(ratios, _WINDOW),
                deque(changes, _WINDOW),
                deque(later[0] if later else (), _WINDOW),
                float(norm),
                float(later[1]) if len(later) > 1 else math.nan,
            )
            for name, (ratios, changes, norm, *later) in state.items()  # older states have no shifts, or no way
        }

        def restore() -> None:
            self._recent = recent

        return restore
