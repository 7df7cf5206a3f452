"""Tabulate the power-law fit on pure noise, which has no closed form.

Medians over draws of Gaussian noise, a row for each M and a column for each Q; made by `python -m
tests.benchmarks.alpha_null`. Values between the entries are interpolated in ln M and ln Q; beyond them the nearest edge
is used. An alpha near its null describes the edge of noise, whatever its size.
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum

_SIDES = np.log([16, 32, 64, 128, 256, 512, 1024])
_RATIOS = np.log([1, 2, 4, 8, 16])
_ALPHA = np.array(
    [
        [2.65, 3.1, 3.69, 4.68, 6.02],
        [3.21, 3.71, 4.49, 5.49, 7.29],
        [4.01, 4.64, 5.68, 6.98, 8.84],
        [5.02, 6.15, 6.9, 8.83, 11.77],
        [6.45, 7.44, 9.57, 11.48, 15.15],
        [9.37, 10.85, 13.96, 16.11, 19.7],
        [11.38, 13.72, 15.15, 21.26, 24.16],
    ]
)
_KS_DISTANCE = np.array(
    [
        [0.196, 0.185, 0.179, 0.174, 0.173],
        [0.172, 0.163, 0.159, 0.156, 0.152],
        [0.154, 0.149, 0.146, 0.143, 0.14],
        [0.142, 0.139, 0.137, 0.135, 0.131],
        [0.135, 0.131, 0.131, 0.128, 0.127],
        [0.129, 0.127, 0.125, 0.124, 0.123],
        [0.124, 0.124, 0.123, 0.121, 0.121],
    ]
)


def alpha_null(spectrum: Spectrum) -> float:
    """Return the median alpha of noise of this M and Q, 2.7 to 24; slices count as one matrix of all eigenvalues."""
    return _interpolated(spectrum.eigenvalues.size, spectrum.q)[0]


def ks_distance_null(spectrum: Spectrum) -> float:
    """Return the median D of noise of this M and Q, 0.12 to 0.20."""
    return _interpolated(spectrum.eigenvalues.size, spectrum.q)[1]


@lru_cache(maxsize=1024)
def _interpolated(size: int, q: float) -> tuple[float, float]:
    """Return the entries of both tables, interpolated bilinearly in (ln M, ln Q)."""
    place = np.log(size), np.log(q)
    return _interpolate(_ALPHA, *place), _interpolate(_KS_DISTANCE, *place)


def _interpolate(table: Floats, log_m: float, log_q: float) -> float:
    by_side = [float(np.interp(log_m, _SIDES, column)) for column in table.T]
    return float(np.interp(log_q, _RATIOS, by_side))
