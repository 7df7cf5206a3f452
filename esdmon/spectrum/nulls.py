"""Tabulate the power-law fit on pure noise, which has no closed form.

Medians over 101 to 1001 draws of Gaussian noise, a row for each M and a column for each Q; made by `python -m
tests.benchmarks.alpha_null`. Values between the entries are interpolated in ln M and ln Q; beyond them the nearest edge
is used. Between draws alpha varies by a factor of 2, so a median is accurate to 5 %, and for M >= 2048 to 10 %.
An alpha near its null describes the edge of noise, whether it is small or large.
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum

_SIDES = np.log([16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
_RATIOS = np.log([1, 2, 4, 8, 16, 32, 64, 256, 1024])
_ALPHA = np.array(
    [
        [2.64, 3.08, 3.73, 4.68, 6.06, 7.93, 10.2, 19.9, 37.3],
        [3.29, 3.68, 4.52, 5.47, 7.03, 9.3, 12.5, 23.8, 43.6],
        [4.07, 4.62, 5.64, 6.85, 8.82, 11.7, 16.3, 29.2, 54.2],
        [5.19, 5.99, 7.24, 8.92, 11.3, 15.3, 20.3, 36.4, 73.0],
        [6.7, 7.95, 9.39, 11.6, 14.6, 21.0, 27.5, 48.3, 95.0],
        [8.64, 10.6, 12.4, 16.2, 19.4, 26.8, 36.4, 69.0, 124.5],
        [11.6, 14.0, 17.0, 21.6, 28.2, 34.2, 45.8, 95.8, 170.0],
        [14.9, 20.2, 25.0, 30.0, 37.1, 51.6, 59.5, 104.0, 218.1],
        [21.4, 27.6, 32.7, 41.0, 55.8, 68.5, 81.5, 165.3, 398.4],
    ]
)
_KS_DISTANCE = np.array(
    [
        [0.196, 0.184, 0.179, 0.175, 0.171, 0.169, 0.17, 0.167, 0.166],
        [0.171, 0.163, 0.158, 0.154, 0.153, 0.151, 0.15, 0.147, 0.147],
        [0.154, 0.149, 0.145, 0.142, 0.14, 0.138, 0.138, 0.135, 0.136],
        [0.142, 0.139, 0.136, 0.134, 0.132, 0.131, 0.13, 0.129, 0.129],
        [0.135, 0.132, 0.129, 0.128, 0.127, 0.125, 0.126, 0.124, 0.124],
        [0.128, 0.127, 0.125, 0.124, 0.124, 0.122, 0.122, 0.121, 0.121],
        [0.125, 0.123, 0.122, 0.122, 0.12, 0.12, 0.119, 0.118, 0.119],
        [0.123, 0.12, 0.119, 0.119, 0.118, 0.117, 0.118, 0.118, 0.117],
        [0.12, 0.119, 0.118, 0.118, 0.118, 0.117, 0.117, 0.116, 0.116],
    ]
)


def alpha_null(spectrum: Spectrum) -> float:
    """Return the median alpha of noise of this M and Q, 2.6 to 400; it grows with M and with Q.

    Slices are treated as one matrix with all of their eigenvalues, which is accurate to a fifth.
    """
    return _interpolated(spectrum.eigenvalues.size, spectrum.q)[0]


def ks_distance_null(spectrum: Spectrum) -> float:
    """Return the median D of noise of this M and Q, 0.12 to 0.20."""
    return _interpolated(spectrum.eigenvalues.size, spectrum.q)[1]


@lru_cache(maxsize=1024)
def _interpolated(size: int, q: float) -> tuple[float, float]:
    """Return the entries of both tables, interpolated bilinearly in (ln M, ln Q)."""
    (row, by_side), (column, by_ratio) = _place(size, _SIDES), _place(q, _RATIOS)
    corners = np.stack((_ALPHA, _KS_DISTANCE))[:, row : row + 2, column : column + 2]
    alpha, ks_distance = by_side @ corners @ by_ratio
    return float(alpha), float(ks_distance)


def _place(value: float, logarithms: Floats) -> tuple[int, Floats]:
    """Return the index of the first of the two entries around a value, and the weights of both."""
    place = float(np.interp(np.log(value), logarithms, np.arange(logarithms.size)))
    first = min(int(place), logarithms.size - 2)
    return first, np.array((first + 1 - place, place - first))
