"""Compute the entropy of a spectrum, and its value for noise.

Source: C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165 (https://arxiv.org/abs/1810.01075).
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.marchenko1967 import mp_mean
from esdmon.spectrum.spectrum import Spectrum


def matrix_entropy(spectrum: Spectrum) -> float:
    """Return −Σ p ln p / ln M, p = λ/Σλ: from 0 (rank one) to 1 (all equal).

    For a convolution M is the number of eigenvalues of all slices. The paper divides by ln rank, which is the same at
    full rank.
    """
    count = spectrum.eigenvalues.size
    if count < 2 or spectrum.lambda_max == 0:
        return float("nan")
    p = spectrum.eigenvalues / spectrum.lambda_max
    p = p / p.sum()
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)) / np.log(count))


def matrix_entropy_null(spectrum: Spectrum) -> float:
    """Return 1 − E[λ ln λ]/ln M under the Marchenko-Pastur law of σ² = 1: mean λ = 1, so p = λ/M."""
    count = spectrum.eigenvalues.size
    if count < 2:
        return float("nan")
    return 1 - _mean_entropy(spectrum.q) / float(np.log(count))


@lru_cache(maxsize=256)
def _mean_entropy(q: float) -> float:
    """Return E[λ ln λ] under the Marchenko-Pastur law of σ² = 1."""
    return mp_mean(lambda lam: lam * np.log(lam), q)
