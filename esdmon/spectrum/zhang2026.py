"""Measure how far the shape of a spectrum has moved between two readings.

The shape is p = σ/Σσ of the singular values in descending order. It does not change if the weight grows or decays as a
whole. The distance of two shapes is ½ Σ|p − p′|: the share of Σσ that has moved to other positions.

Reference: H. Zhang, W. Zhou, C. Jia, W. Chen, X. Cheng, "The stability of singular distribution: a spectral perspective
on the two-phase dynamics of language model pre-training" (2026) (https://arxiv.org/abs/2605.26489): this shape settles
early, while the weights still move, where the loss begins its slow descent. The abstract names no norm; ½ Σ|p − p′| is
our choice, since it has a range and a meaning.
"""

import math
from collections.abc import Sequence

import numpy as np

from esdmon.spectrum.spectrum import Spectrum

DISTANCE = "spectral_distance"
"""Name of the measure."""
LARGEST = 64
"""Number of singular values that are stored singly in a shape. Our choice: more than the spikes of most layers."""
GROUPS = 64
"""Number of groups of neighbours in which the other singular values are summed, so that a record stays small. The
distance over groups is at most the distance over single values: equal to 1e-4 if a few directions grow, and 0.4 times
as large if noise of 1 % is added to a 768 × 768 matrix. Our choice.
"""


def shape_of(spectrum: Spectrum) -> tuple[float, ...]:
    """Return p = σ/Σσ in descending order: all values, or the 64 largest and sums over 64 groups of the others.

    The result is empty for a zero matrix.
    """
    sigma = np.sqrt(spectrum.eigenvalues[::-1])
    total = float(sigma.sum())
    if total == 0:
        return ()
    p = sigma / total
    if p.size > LARGEST + GROUPS:
        size, more = divmod(p.size - LARGEST, GROUPS)  # the first few groups have one value more than the others
        group = np.arange(GROUPS)
        p = np.concatenate((p[:LARGEST], np.add.reduceat(p, LARGEST + group * size + np.minimum(group, more))))
    return tuple(p.tolist())


def distance(before: Sequence[float], now: Sequence[float]) -> float:
    """Return ½ Σ|p − p′| of two shapes, from 0 (the same) to 1; NaN if one is empty, or if they differ in length.

    >>> distance((0.5, 0.5), (0.75, 0.25))
    0.25
    """
    if not before or len(before) != len(now):
        return math.nan
    return float(np.abs(np.subtract(before, now)).sum() / 2)


def spectral_distance(_spectrum: Spectrum) -> float:
    """Return NaN: the measure needs two readings, and is set in the records of a watched run.

    In a watched run the record of each reading but the first has ½ Σ|p − p′|, p = σ/Σσ in descending order, from the
    reading before it: from 0 (the same shape) to 1. It is 0 for a weight that only grows or decays as a whole. If there
    are more than 128 singular values, the 64 largest and sums over 64 groups of the others are compared. Source: H.
    Zhang and others, "The stability of singular distribution" (2026) (https://arxiv.org/abs/2605.26489); the abstract
    names no norm; this norm is our choice.
    """
    return math.nan
