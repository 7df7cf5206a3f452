"""Compute the confidence of a phase: the distance of a spectrum from the nearest border, between 0 and 1.

Distances are logarithms of factors in units of ln 1.5, so that 1 is a factor of 1.5 (our choice).
"""

import itertools
import math
from collections.abc import Iterator

from esdmon.spectrum.phases import Evidence, Phase, PhaseThresholds, dead_share, decide, gap_of_zeros, is_collapsed
from esdmon.spectrum.spectrum import Spectrum

_FAR = math.log(1.5)
_BESIDE = 1e-9  # relative distance from a border of the values tried on either side of it


def to_other_phase(evidence: Evidence, phase: Phase) -> float:
    """Return the distance to the nearest values of the evidence that give another phase, at most 1.

    If several pieces of evidence change, the largest single distance counts.
    """
    names = ("soft_rank", "spikes", "share", "ks", "alpha", "tail_ks", "ratio", "n_tail", "beside")
    choices = {name: [(getattr(evidence, name), 0.0)] for name in names}
    for name, value, distance in _across_borders(evidence):
        if distance < 1:
            choices[name].append((value, distance))
    nearest = 1.0
    for chosen in itertools.product(*choices.values()):
        distance = max(part for _, part in chosen)
        if distance < nearest:
            values = dict(zip(choices, (value for value, _ in chosen), strict=True))
            if decide(evidence._replace(**values)) is not phase:
                nearest = distance
    return nearest


def _across_borders(e: Evidence) -> Iterator[tuple[str, float, float]]:
    """Yield (piece of evidence, value across a border, distance to it) for every border."""
    limits = e.limits
    for name, border in (
        ("soft_rank", limits.bleeding_soft_rank),
        ("soft_rank", limits.heavy_soft_rank),
        ("soft_rank", limits.far_soft_rank),
        ("share", limits.max_spike_share),
        ("ks", e.clean_ks_limit),
        ("ks", e.near_ks_limit),
        ("ks", e.bulk_ks_limit),
        ("alpha", limits.heavy_alpha),
        ("tail_ks", limits.heavy_ks),
    ):
        value = getattr(e, name)
        if value >= border:
            yield name, border * (1 - _BESIDE), _distance(value, border)
        if value <= border:
            yield name, border * (1 + _BESIDE), _distance(value, border)
    beyond = limits.heavy_ratio + (_BESIDE if e.ratio <= limits.heavy_ratio else -_BESIDE)
    yield "ratio", beyond, abs(e.ratio - limits.heavy_ratio)
    shares = (limits.heavy_share, limits.far_share)
    for last in (math.floor(e.few_spikes), *(math.ceil(share * e.size) - 1 for share in shares)):
        if last >= 1:
            yield "spikes", last + 1 if e.spikes <= last else last, _distance_of_count(e.spikes, last)
    last = e.few_beside
    yield "beside", last + 1 if e.beside <= last else last, _distance_of_count(e.beside, last)
    yield "spikes", 0 if e.spikes else 1, _distance(e.reach, 1)
    last = limits.min_n_tail - 1
    yield "n_tail", last + 1 if e.n_tail <= last else last, _distance_of_count(e.n_tail, last)


def _distance(value: float, border: float) -> float:
    """Return |ln(value/border)|/ln 1.5; infinite unless both are positive and finite."""
    if not (value > 0 and border > 0 and math.isfinite(value)):
        return math.inf
    return abs(math.log(value / border)) / _FAR


def _distance_of_count(count: float, last: int) -> float:
    """Return the distance from the last count before a border or the first behind it; infinite for a count of 0."""
    if count == 0:
        return math.inf
    return _distance(count, last if count <= last else last + 1)


def to_other_rank(spectrum: Spectrum, limits: PhaseThresholds) -> float:
    """Return the distance to the border of rank collapse or of `max_dead`, from either side; it may exceed 1."""
    size, rank = spectrum.eigenvalues.size, spectrum.rank
    zeros = _distance_of_count(size - rank, size - math.ceil(limits.min_rank * size))
    gap = _distance(gap_of_zeros(spectrum), limits.zero_gap)
    if is_collapsed(spectrum, limits):
        collapse = min(zeros, gap)
    else:  # both conditions must become true
        few_zeros, is_one_tail = rank >= limits.min_rank * size, gap_of_zeros(spectrum) >= limits.zero_gap
        collapse = max(zeros if few_zeros else 0.0, gap if is_one_tail else 0.0)
    return min(collapse, _distance(dead_share(spectrum), limits.max_dead))
