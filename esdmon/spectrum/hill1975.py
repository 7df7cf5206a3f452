"""Estimate the exponent of a tail from its upper half, without a search for where it begins.

Reference: B. M. Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3
(1975) 1163.
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.clauset2009 import SAME
from esdmon.spectrum.marchenko1967 import mp_quantile
from esdmon.spectrum.spectrum import Spectrum


def hill_alpha(spectrum: Spectrum) -> float:
    """Return 1 + k/Σ ln(λ/λ_med) over the k = n/2 largest of the n eigenvalues that are not zero.

    It varies less than alpha, because no xmin is searched, but it is biased: compare it with its null. NaN if the k
    eigenvalues are equal up to rounding, as for orthogonal weights, and if M = 1. Source: B. M. Hill, Annals of
    Statistics 3 (1975) 1163; k = n/2 as in TempBalance (https://arxiv.org/abs/2312.00359).
    """
    if spectrum.is_of_norms:
        return float("nan")
    lam = spectrum.nonzero
    logs = np.log(lam[lam.size // 2 :] / lam[lam.size // 2]) if lam.size else lam
    return 1 + logs.size / float(np.sum(logs)) if logs.size and logs[-1] >= SAME else float("nan")


def hill_alpha_null(spectrum: Spectrum) -> float:
    """Return the Hill alpha of the Marchenko-Pastur law: 2.12 at Q = 1 (noise scores "ideal") to 10.6 at Q = 64."""
    return hill_alpha_of_noise(spectrum.q)


@lru_cache(maxsize=256)
def hill_alpha_of_noise(q: float) -> float:
    """Return the Hill alpha of the Marchenko-Pastur law at the aspect ratio Q."""
    tail = mp_quantile(0.5 + (np.arange(2048) + 0.5) / 4096, q)
    return float(1 + 1 / np.mean(np.log(tail / mp_quantile(np.array([0.5]), q))))
