"""Fit a layer's own baseline: the value to expect from its last readings, and their scatter.

Measures differ between networks by orders of magnitude and drift during training. So rules look for *jumps* from a
layer's own baseline, not for a fixed level. The baseline is a line through the logarithms of the readings before those
under test. Its slope is the median of the slopes between all pairs of readings, which outliers do not move as long as
they are less than a third. The scatter is the median distance from the line, converted to a standard deviation.

Reference: H. Theil, Proc. Kon. Ned. Akad. Wet. A 53 (1950) 386; P. K. Sen, "Estimates of the regression coefficient
based on Kendall's tau", JASA 63 (1968) 1379.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECENT = 3
"""Latest readings, left out of the baseline because they are under test: the default `checks` of a rule."""
WARM_UP = 6
"""Readings that a baseline needs. Our choice."""
KNOWN_FROM = WARM_UP + RECENT
"""Readings of a layer before which no change is found."""
_GAUSSIAN = 1.4826  # the standard deviation of a Gaussian over its median distance from the middle


@dataclass(frozen=True, slots=True)
class Baseline:
    """The range to expect of a measure, and the scatter of the readings that it was fitted to."""

    low: float
    """The lower of two values: the median, and the line at the latest reading. A steady decline is not a jump."""
    high: float
    """The higher of the two."""
    scatter: float
    """Factor >= 1: exp of the standard deviation of the logarithms about the line."""


def fit_baseline(values: Sequence[float]) -> Baseline | None:
    """Return the baseline at the reading `RECENT` places after the last of these.

    Args:
        values: readings of a measure, oldest first.

    Returns:
        The baseline; None for fewer than `WARM_UP` values, or if one is not positive and finite.
    """
    before = np.asarray(values, dtype=np.float64)
    if before.size < WARM_UP or not np.all(np.isfinite(before)) or np.any(before <= 0):
        return None
    logs = np.log(before)
    first, second = np.triu_indices(logs.size, k=1)
    slope = float(np.median((logs[second] - logs[first]) / (second - first)))
    line = slope * np.arange(logs.size)
    start = float(np.median(logs - line))
    scatter = _GAUSSIAN * float(np.median(np.abs(logs - line - start)))
    level, now = float(np.median(logs)), start + slope * (logs.size - 1 + RECENT)
    return Baseline(math.exp(min(level, now)), math.exp(max(level, now)), math.exp(scatter))
