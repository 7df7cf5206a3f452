"""Compute the Marchenko-Pastur law, the eigenvalue density of pure noise.

Legend: W is N × M with N >= M and independent elements of variance σ²; X = WᵀW/N; Q = N/M >= 1; λ are the
eigenvalues of X. All lengths here are in units of σ² = 1; scale by σ² for other variances.

Reference: V. A. Marchenko, L. A. Pastur, "Distribution of eigenvalues for some sets of random matrices",
Math. USSR Sbornik 1 (1967) 457 (https://doi.org/10.1070/SM1967v001n04ABEH001994).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from esdmon.spectrum.arrays import Floats

# Knots of the tabulated CDF, spaced evenly in the angle θ of λ = c + h·cos θ: as a function of θ the CDF is smooth up
# to both edges, also the hard edge at Q = 1. Linear interpolation between 4097 knots has an error below 1e-6.
_KNOTS = 4097
_NODES = 1024  # of the integral in `mp_mean`


def mp_edges(q: float) -> tuple[float, float]:
    """Return the edges of the bulk, λ± = (1 ± 1/√Q)², for σ² = 1.

    >>> mp_edges(4.0)
    (0.25, 2.25)
    """
    if not 1 <= q < np.inf:
        msg = f"Q = N/M must be finite and at least 1, since N >= M; got {q!r}"
        raise ValueError(msg)
    root = 1 / q**0.5
    return (1 - root) ** 2, (1 + root) ** 2


def mp_density(lam: Floats, q: float) -> Floats:
    """Return ρ(λ) = Q/(2π) · √((λ⁺ − λ)(λ − λ⁻)) / λ inside the edges and 0 outside, for σ² = 1.

    >>> float(np.round(mp_density(np.array([1.0]), 1.0)[0], 4))
    0.2757
    """
    low, high = mp_edges(q)
    lam = np.asarray(lam, dtype=np.float64)
    inside = (lam > max(low, 0.0)) & (lam < high)
    safe = np.where(inside, lam, 1.0)
    density = q / (2 * np.pi) * np.sqrt(np.clip((high - safe) * (safe - low), 0, None)) / safe
    return np.where(inside, density, 0.0)


def mp_cdf(lam: Floats, q: float) -> Floats:
    """Return P(eigenvalue <= λ) under the Marchenko-Pastur law, for σ² = 1.

    >>> [float(p) for p in mp_cdf(np.array([0.0, 4.0]), 1.0)]
    [0.0, 1.0]
    """
    low, high = mp_edges(q)
    cosine = (np.asarray(lam, dtype=np.float64) - (high + low) / 2) / ((high - low) / 2)
    return np.interp(-np.arccos(np.clip(cosine, -1, 1)), *_table(float(q)))


def mp_quantile(p: Floats, q: float) -> Floats:
    """Return λ with mp_cdf(λ, Q) = p, for probabilities p in [0, 1] and σ² = 1.

    >>> float(np.round(mp_quantile(np.array([0.5]), 1.0)[0], 4))  # the median of a square matrix
    0.6528
    """
    low, high = mp_edges(q)
    angle, cdf = _table(float(q))
    theta = np.interp(np.asarray(p, dtype=np.float64), cdf, angle)
    return (high + low) / 2 + (high - low) / 2 * np.cos(theta)


def mp_mean(function: Callable[[Floats], Floats], q: float) -> float:
    """Return E f(λ) = ∫ f(λ) ρ(λ) dλ for a function f that is smooth on the bulk, for σ² = 1.

    >>> round(mp_mean(np.square, 2.0), 9)  # E λ² = 1 + 1/Q
    1.5
    """
    low, high = mp_edges(q)
    # With λ = c + h·cos θ the integrand is Q h²/(2π) f(λ) sin²θ/λ, even and periodic in θ: the midpoint rule
    # converges geometrically.
    theta = np.pi * (np.arange(_NODES) + 0.5) / _NODES
    lam = (high + low) / 2 + (high - low) / 2 * np.cos(theta)
    weights = np.sin(theta) ** 2 / lam
    return float(np.sum(function(lam) * weights) / np.sum(weights))


@lru_cache(maxsize=256)
def _table(q: float) -> tuple[Floats, Floats]:
    """Return (−θ, CDF) on ascending knots, by the closed form of the distribution function."""
    low, high = mp_edges(q)
    angle = np.linspace(-np.pi, 0, _KNOTS)
    lam = (high + low) / 2 + (high - low) / 2 * np.cos(angle[1:-1])
    ratio = 1 / q
    r = np.sqrt((high - lam) / (lam - low))
    inner = (
        np.pi * ratio
        + np.sqrt((high - lam) * (lam - low))
        - (1 + ratio) * np.arctan((r**2 - 1) / (2 * r))
        + ((1 - ratio) * np.arctan((low * r**2 - high) / (2 * (1 - ratio) * r)) if ratio < 1 else 0.0)
    ) / (2 * np.pi * ratio)
    cdf = np.concatenate(([0.0], np.maximum.accumulate(np.clip(inner, 0.0, 1.0)), [1.0]))
    angle.flags.writeable = cdf.flags.writeable = False
    return angle, cdf
