"""Define the protocol `NoiseLaw`, which the fit of a bulk uses, and the law of noise with equal scales.

All lengths are in units of X = WᵀW/N with σ² = 1, the mean variance of the elements.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import johnstone_centre, johnstone_scale
from esdmon.spectrum.marchenko1967 import mp_cdf, mp_edges, mp_quantile


class NoiseLaw(Protocol):
    """The distribution of the eigenvalues of one N × M matrix of noise, and of its largest eigenvalue."""

    @property
    def edge(self) -> float:
        """Return λ⁺, the upper edge of the distribution for N, M → ∞."""

    @property
    def centre(self) -> float:
        """Return μ, about which the largest eigenvalue of a finite matrix fluctuates."""

    @property
    def scale(self) -> float:
        """Return s: (λmax − μ)/s has the Tracy-Widom law TW₁."""

    def cdf(self, lam: Floats) -> Floats:
        """Return P(eigenvalue <= λ)."""

    def quantile(self, p: Floats) -> Floats:
        """Return λ with cdf(λ) = p."""

    def __hash__(self) -> int:
        """Return a hash: values that fits compute from a law are cached by it."""


@dataclass(frozen=True, slots=True)
class MarchenkoPastur:
    """The law of noise whose rows and columns have equal scales, for Q = N/M."""

    q: float
    edge: float
    centre: float
    scale: float

    def cdf(self, lam: Floats) -> Floats:
        """Return P(eigenvalue <= λ)."""
        return mp_cdf(lam, self.q)

    def quantile(self, p: Floats) -> Floats:
        """Return λ with cdf(λ) = p."""
        return mp_quantile(p, self.q)


@lru_cache(maxsize=256)
def marchenko_pastur(n: int, m: int) -> MarchenkoPastur:
    """Return the law of an N × M matrix, N >= M, with the centre and scale of Johnstone (2001)."""
    return MarchenkoPastur(n / m, mp_edges(n / m)[1], johnstone_centre(n, m), johnstone_scale(n, m))
