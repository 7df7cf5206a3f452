"""Compute effective rank, condition number, nuclear norm, gap and SNR from singular values.

Legend: σᵢ = √(N·λᵢ) are the singular values of W, descending; s² is the mean square of its elements; E is the mean
under the Marchenko-Pastur law of variance 1. The singular values of all slices of a convolution are pooled.
"""

from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.marchenko1967 import mp_mean
from esdmon.spectrum.spectrum import Spectrum

SINGLE_NOISE = 1e-5
"""λ/λmax below which the smallest eigenvalue of a float32 WᵀW is not known, since its error is up to 5e-7. Above this
value σmin is accurate to 3 %. Our choice.
"""


def effective_rank(spectrum: Spectrum) -> float:
    """Return exp(−Σ p ln p), p = σ/Σσ: from 1 (rank one) to M (all equal).

    Source: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. Other
    authors use p = λ/Σλ; this gives M^`matrix_entropy`.

    >>> round(effective_rank(Spectrum.from_eigenvalues([1.0, 1.0, 0.0], shape=(3, 3))), 9)
    2.0
    """
    p = np.sqrt(spectrum.eigenvalues)
    if spectrum.lambda_max == 0:
        return float("nan")
    p = p / p.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def effective_rank_null(spectrum: Spectrum) -> float:
    """Return M·E√λ·exp(−E[√λ ln √λ]/E√λ) (times slices), the limit for large M."""
    mean, entropy = _roots_of_noise(spectrum.q)
    return spectrum.eigenvalues.size * mean * float(np.exp(-entropy / mean))


def nuclear_norm(spectrum: Spectrum) -> float:
    """Return ‖W‖_* = Σσ = √N·Σ√λ."""
    return float(spectrum.n**0.5 * np.sqrt(spectrum.eigenvalues).sum())


def nuclear_norm_null(spectrum: Spectrum) -> float:
    """Return M·√N·s·E√λ (times slices)."""
    return float(spectrum.eigenvalues.size * (spectrum.n * spectrum.mean) ** 0.5 * _roots_of_noise(spectrum.q)[0])


def sigma_min(spectrum: Spectrum) -> float:
    """Return the smallest σ of all slices; 0 if the rank is not full, NaN if float32 does not resolve it.

    With `precision="exact"` it is computed in float64, and known down to the zero tolerance of the weight's dtype.
    """
    relative = float(spectrum.eigenvalues[0]) / spectrum.lambda_max if spectrum.lambda_max > 0 else 0.0
    if spectrum.precision == "float32" and relative < SINGLE_NOISE:
        return float("nan")
    return float((spectrum.n * spectrum.eigenvalues[0]) ** 0.5) if relative > spectrum.zero_tolerance else 0.0


def sigma_min_null(spectrum: Spectrum) -> float:
    """Return s·(√N − √(M − 1)) for one slice: accurate to a tenth for N = M and N >= 1.5 M, and to a third between.

    Source: M. Rudelson, R. Vershynin, Comm. Pure Appl. Math. 62 (2009) 1707 (https://arxiv.org/abs/0802.3956); A.
    Edelman, SIAM J. Matrix Anal. Appl. 9 (1988) 543 gives the median 0.545·s/√N for N = M.
    """
    return float(spectrum.mean**0.5 * (spectrum.n**0.5 - (spectrum.m - 1) ** 0.5))


def condition_number(spectrum: Spectrum) -> float:
    """Return σmax/σmin, at least 1; NaN if σmin is 0 or not known, see `sigma_min`."""
    smallest = sigma_min(spectrum)
    return float((spectrum.n * spectrum.lambda_max) ** 0.5) / smallest if smallest > 0 else float("nan")


def condition_number_null(spectrum: Spectrum) -> float:
    """Return (√N + √M)/(√N − √(M − 1)) for one slice. Source: see `sigma_min_null`."""
    n, m = spectrum.shape
    return float((n**0.5 + m**0.5) / (n**0.5 - (m - 1) ** 0.5))


def spectral_gap(spectrum: Spectrum) -> float:
    """Return σ₁/σ₂ >= 1 of the two largest singular values of all slices; NaN if σ₂ cannot be distinguished from 0."""
    lam = spectrum.nonzero
    return float((lam[-1] / lam[-2]) ** 0.5) if lam.size > 1 else float("nan")


def snr(spectrum: Spectrum) -> float:
    """Return Σλ of the spikes over Σλ of the other eigenvalues: a ratio of energies above and below the edge of noise.

    It is 0 for noise, and NaN if no bulk of noise was found. Source: E. Hartford and others, "Spectrum: targeted
    training on signal to noise ratio" (2024) (https://arxiv.org/abs/2406.06623), which sums σ instead of λ, and divides
    by σ₁.
    """
    bulk = spectrum.noise_bulk
    if bulk is None:
        return float("nan")
    # Each slice has its own edge, so spikes are counted slice by slice, not by one common edge.
    above = sum(float(lam[lam.size - k :].sum()) for lam, k in zip(spectrum.by_slice, bulk.spikes, strict=True))
    below = spectrum.total - above
    return above / below if below > 0 else float("nan")


@lru_cache(maxsize=256)
def _roots_of_noise(q: float) -> tuple[float, float]:
    """Return E√λ and E[√λ ln √λ]."""

    def entropy(lam: Floats) -> Floats:
        return np.sqrt(lam) * np.log(lam) / 2

    return mp_mean(np.sqrt, q), mp_mean(entropy, q)
