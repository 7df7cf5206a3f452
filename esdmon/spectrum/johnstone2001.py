"""Compute the law of the largest eigenvalue of pure noise: Johnstone's centre and scale, Tracy-Widom quantiles.

Legend: W is N × M, N >= M, independent elements of variance 1; ℓ is the largest eigenvalue of WᵀW. Then
(ℓ − μ)/s tends to the Tracy-Widom law TW₁. In units of X = WᵀW/N, μ and s are divided by N.

Reference: I. M. Johnstone, "On the distribution of the largest eigenvalue in principal components analysis",
Annals of Statistics 29 (2001) 295 (https://doi.org/10.1214/aos/1009210544), eq. 1.3 and 1.4: accurate for N and M as
small as 5.
"""

from types import MappingProxyType

# P(TW₁ <= x) = p. Computed from the Painlevé II representation; Johnstone's table 1 gives the first two to two digits.
TRACY_WIDOM_QUANTILES = MappingProxyType(
    {0.90: 0.4501, 0.95: 0.9793, 0.99: 2.0234, 0.995: 2.4223, 0.999: 3.2722, 0.9999: 4.3594}
)


def johnstone_centre(n: int, m: int) -> float:
    """Return μ/N = (√(N−1) + √M)²/N, the centre of the largest eigenvalue of X = WᵀW/N, for σ² = 1."""
    return float(((n - 1) ** 0.5 + m**0.5) ** 2 / n)


def johnstone_scale(n: int, m: int) -> float:
    """Return s/N = (√(N−1) + √M)·(1/√(N−1) + 1/√M)^⅓/N, the width of its Tracy-Widom law, for σ² = 1.

    >>> round(johnstone_scale(4096, 384), 5), round(johnstone_scale(384, 192), 5)
    (0.00827, 0.04332)
    """
    root_n, root_m = (n - 1) ** 0.5, m**0.5
    return float((root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3) / n)
