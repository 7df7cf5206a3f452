"""Measure the rotation of the strongest directions of a weight since a reference, and since the last reading.

A direction is a left singular vector u of W. Fine-tuning by low-rank adapters creates strong directions that are not
close to any direction of the original weight. These intruder dimensions go along with forgetting.

Reference: R. Shuttleworth, J. Andreas, A. Torralba, P. Sharma, "LoRA vs full fine-tuning: an illusion of equivalence"
(2024) (https://arxiv.org/abs/2410.21228). `peft.tuners.lora.intruders` counts them with the same defaults.
"""

import math

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum

COUNT = 10
"""Number of strongest directions that are compared, as peft's `top_k`."""
_INTRUDER = 0.5  # cosine below which a direction is new, as peft's `threshold_epsilon`


def intruders(spectrum: Spectrum) -> float:
    """Return how many of the 10 strongest directions have |cos| < 0.5 with all those of W₀: 0 to 10 (times slices).

    Defined for a weight that is read against a reference, and for `*/merged` of an adapter. Source: R. Shuttleworth and
    others, "LoRA vs full fine-tuning: an illusion of equivalence" (2024) (https://arxiv.org/abs/2410.21228).
    """
    if spectrum.cosines is None or spectrum.directions is None:
        return math.nan
    is_known = spectrum.directions.any(axis=2)
    return float(np.sum(is_known & (spectrum.cosines.max(axis=2) < _INTRUDER)))


def reference_overlap(spectrum: Spectrum) -> float:
    """Return Σ cos²/k of the k = 10 strongest directions of W with those of W₀: the overlap of two subspaces, 0 to 1.

    It is 1 for the same subspace; its null is k/rows, the mean for random subspaces. Slices are averaged. Source: ours.
    """
    if spectrum.cosines is None or spectrum.directions is None:
        return math.nan
    return _share(spectrum.cosines[:, :, :COUNT], spectrum.directions)


def subspace_overlap(spectrum: Spectrum) -> float:
    """Return Σ cos²/k of the k = 10 strongest directions with those of the last reading in this process: 0 to 1.

    It is 1 for the same subspace; its null is k/rows, the mean for random subspaces. NaN at a first reading, also at
    the first of a resumed run. If the weight is read against a reference, the directions are those of W, not of the
    difference. Slices are averaged. Source: ours.
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
    """Return the number of directions in a slice, averaged over slices."""
    return float(directions.any(axis=2).sum() / len(directions))
