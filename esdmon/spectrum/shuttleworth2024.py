"""Measure how far the strongest directions of a weight have turned: from a reference, and from the last reading.

A direction is a left singular vector u of W. In fine-tuning by low-rank adapters new strong directions appear that no
direction of the weight before is close to, the intruder dimensions; they come with forgetting.

Reference: R. Shuttleworth, J. Andreas, A. Torralba, P. Sharma, "LoRA vs full fine-tuning: an illusion of equivalence"
(2024) (https://arxiv.org/abs/2410.21228). `peft.tuners.lora.intruders` counts them with the same defaults.
"""

import math

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum

COUNT = 10
"""Strongest directions that are compared, as peft's `top_k`."""
_INTRUDER = 0.5  # cosine below which a direction is new, as peft's `threshold_epsilon`


def intruders(spectrum: Spectrum) -> float:
    """Return how many of the 10 strongest directions have |cos| < 0.5 with each one of W₀: 0 to 10 (times slices).

    Of a weight that is read against a reference, and of `*/merged` of an adapter. Source: R. Shuttleworth and others,
    "LoRA vs full fine-tuning: an illusion of equivalence" (2024) (https://arxiv.org/abs/2410.21228).
    """
    if spectrum.cosines is None or spectrum.directions is None:
        return math.nan
    is_known = spectrum.directions.any(axis=2)
    return float(np.sum(is_known & (spectrum.cosines.max(axis=2) < _INTRUDER)))


def reference_overlap(spectrum: Spectrum) -> float:
    """Return Σ cos²/k of the k = 10 strongest directions of W with those of W₀: the share of one space in the other.

    1: the same subspace; k/rows, its null: two that have nothing in common. Slices are averaged. Source: ours.
    """
    if spectrum.cosines is None or spectrum.directions is None:
        return math.nan
    return _share(spectrum.cosines[:, :, :COUNT], spectrum.directions)


def subspace_overlap(spectrum: Spectrum) -> float:
    """Return Σ cos²/k of the k = 10 strongest directions with those of the last reading in this process: 0 to 1.

    1: the same subspace; k/rows, its null: two that have nothing in common. NaN at a first reading, also of a resumed
    run. Of a weight that is read against a reference these are the directions of W, not of the difference. Slices are
    averaged. Source: ours.
    """
    now, before = spectrum.directions, spectrum.last_directions
    if now is None or before is None or now.shape != before.shape:
        return math.nan
    return _share(now @ before.swapaxes(1, 2), now)


def overlap_null(spectrum: Spectrum) -> float:
    """Return k/rows, the mean for random subspaces of k directions."""
    if spectrum.directions is None:
        return math.nan
    return _known(spectrum.directions) / float(spectrum.directions.shape[2])


def has_reference(spectrum: Spectrum) -> bool:
    """Return whether the directions of a reference are known."""
    return spectrum.cosines is not None


def _share(cosines: Floats, directions: Floats) -> float:
    known = _known(directions)
    return float(np.square(cosines).sum() / known / len(directions)) if known else math.nan


def _known(directions: Floats) -> float:
    """Return the number of directions in a slice, the mean over slices."""
    return float(directions.any(axis=2).sum() / len(directions))
