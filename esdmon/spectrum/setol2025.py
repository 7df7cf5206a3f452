"""Measure the exact-renormalisation-group (ERG) condition: the part of the tail whose eigenvalues have the product 1.

Legend: λ are rescaled to mean 1; the ERG tail is the largest set of top eigenvalues with Σ ln λ >= 0.

Reference: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025)
(https://arxiv.org/abs/2507.17912): at the ideal alpha = 2 the power-law tail and the ERG tail begin at the same
eigenvalue; if the power law begins below, the layer is over-regularised.
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.marchenko1967 import mp_quantile
from esdmon.spectrum.spectrum import Spectrum


def erg_rank(spectrum: Spectrum) -> float:
    """Return the number of eigenvalues in the ERG tail; NaN if M = 1.

    Logarithms are summed, since a product of thousands of eigenvalues would underflow.

    >>> erg_rank(Spectrum.from_eigenvalues([0.1, 0.1, 0.1, 3.7], shape=(4, 4)))
    1.0
    """
    mean = spectrum.mean
    return float(_tail(spectrum.nonzero / mean).size) if mean > 0 and not spectrum.is_of_norms else float("nan")


def erg_rank_null(spectrum: Spectrum) -> float:
    """Return the ERG rank of the quantiles of the Marchenko-Pastur law."""
    return _erg_rank_of_noise(spectrum.eigenvalues.size, spectrum.q)


@lru_cache(maxsize=256)
def _erg_rank_of_noise(count: int, q: float) -> float:
    return float(_tail(mp_quantile((np.arange(count) + 0.5) / count, q)).size)


def erg_gap(spectrum: Spectrum) -> float:
    """Return xmin − the smallest λ of the ERG tail, at mean λ = 1: negative if the power law begins below it."""
    if not spectrum.power_law.n_tail:
        return float("nan")
    mean = spectrum.mean
    tail = _tail(spectrum.nonzero / mean)
    return spectrum.power_law.xmin / mean - float(tail[0]) if tail.size else float("nan")


def _tail(lam: Floats) -> Floats:
    """Return the largest set of top eigenvalues with Σ ln λ >= 0, from ascending λ."""
    # The sums rise while λ > 1 and fall from there on, so they cross 0 once.
    falling = -np.cumsum(np.log(lam[::-1]))
    above_one = lam.size - int(np.searchsorted(lam, 1.0, side="right"))
    size = above_one + int(np.searchsorted(falling[above_one:], 0.0, side="right"))
    return lam[lam.size - size :]
