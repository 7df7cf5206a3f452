"""Measure how far the shape of a spectrum has moved between two readings.

The shape is p = σ/Σσ of the singular values in descending order, so that a weight which grows or decays as a whole has
not moved. The distance of two shapes is ½ Σ|p − p′|: the share of Σσ that is in other places of the order.

Reference: H. Zhang, W. Zhou, C. Jia, W. Chen, X. Cheng, "The stability of singular distribution: a spectral perspective
on the two-phase dynamics of language model pre-training" (2026) (https://arxiv.org/abs/2605.26489): this shape settles
early, while the weights still move, where the loss begins its slow descent. Its abstract names no norm; ½ Σ|p − p′| is
our choice, since it has a range and a meaning.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Indices
from esdmon.spectrum.spectrum import Spectrum

DISTANCE = "spectral_distance"
"""Name of the measure."""
LARGEST = 64
"""Singular values that have a place of their own in a shape. Our choice: more than most layers have spikes."""
GROUPS = 64
"""Groups of neighbours that the others are summed in, so that a record stays small. A distance over groups is at most
that over single values: the same to 1e-4 of it where a few directions grow, 0.4 of it where noise of 1 % is added to a
768 × 768 matrix. Our choice."""


def shape_of(spectrum: Spectrum) -> tuple[float, ...]:
    """Return p = σ/Σσ in descending order: all, or the 64 largest and sums over 64 groups of the others.

    Empty for a matrix that is zero.
    """
    sigma = np.sqrt(spectrum.eigenvalues[::-1])
    total = float(sigma.sum())
    if total == 0:
        return ()
    p = sigma / total
    if p.size > LARGEST + GROUPS:
        p = np.concatenate((p[:LARGEST], np.add.reduceat(p, LARGEST + _starts(p.size - LARGEST))))
    return tuple(p.tolist())


@lru_cache(maxsize=256)
def _starts(count: int) -> Indices:
    """Return where groups of about equal size begin: the first few have one more than the others."""
    size, more = divmod(count, GROUPS)
    group = np.arange(GROUPS)
    return group * size + np.minimum(group, more)


def distance(before: Sequence[float], now: Sequence[float]) -> float:
    """Return ½ Σ|p − p′| of two shapes, from 0 (the same) to 1; NaN where one is empty, or they differ in length.

    >>> distance((0.5, 0.5), (0.75, 0.25))
    0.25
    """
    if not before or len(before) != len(now):
        return math.nan
    return float(np.abs(np.subtract(before, now)).sum() / 2)


def spectral_distance(_spectrum: Spectrum) -> float:
    """Return NaN, since one spectrum has no distance.

    In a watched run the record of each reading but the first has ½ Σ|p − p′|, p = σ/Σσ in descending order, from the
    reading before it: from 0 (the same shape) to 1. A weight that only grows or decays as a whole has 0. Of more than
    128 singular values the 64 largest, and sums over 64 groups of the others, are compared. Source: H. Zhang and
    others, "The stability of singular distribution" (2026) (https://arxiv.org/abs/2605.26489); its abstract names no
    norm, and this one is our choice.
    """
    return math.nan
