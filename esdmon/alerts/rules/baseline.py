"""A layer's own baseline: what its last readings lead one to expect, and how much they scatter.

Networks differ by orders of magnitude in every measure, and each measure drifts as training goes on, so a level that is
alarming in one layer is where another has always been. What is alarming everywhere is a *leap*. The baseline is a line
through the logarithms of the readings before the ones under test, by the median of the slopes of all pairs (Theil 1950,
Sen 1968), which a third of outliers does not move; the scatter is the median of the distances from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECENT = 3
"""Readings under test, which are no part of the baseline: as many as a rule asks for before it fires."""
WARM_UP = 6
"""Readings that a baseline takes at least. With `RECENT`, no change is told before the ninth reading. Our choice."""
_GAUSSIAN = 1.4826  # the standard deviation of a Gaussian over its median distance from the middle


@dataclass(frozen=True, slots=True)
class Baseline:
    """Where a layer was, where it was heading, and how sure that is."""

    low: float
    """The lower of the median before and of where the line leads now: a steady decline is no leap."""
    high: float
    """The higher of the two."""
    scatter: float
    """Of the readings about the line, as a factor: exp of the standard deviation of the logarithms."""


def fit_baseline(values: Sequence[float]) -> Baseline | None:
    """What is to be expected `RECENT` readings after these, oldest first; None of too few, or where one is not > 0."""
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
