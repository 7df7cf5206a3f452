"""Define `Esd`, the spectrum of a matrix as a histogram."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Esd:
    """The empirical spectral density of a matrix: a histogram of log₁₀ λ with bins of equal width.

    λ are the eigenvalues of WᵀW/N.
    """

    low: float
    """log₁₀ λ at the left border of the first bin."""
    high: float
    """log₁₀ λ at the right border of the last bin."""
    counts: tuple[int, ...]
    """Number of eigenvalues in each bin."""
    zeros: int = 0
    """Number of zero eigenvalues, which have no logarithm and are in no bin."""
    noise: tuple[float, ...] = ()
    """Expected number in each bin for noise with row and column scales; empty if the Marchenko-Pastur law describes the
    bulk, or no bulk was found."""
    top: tuple[float, ...] = ()
    """The 16 largest λ, or all if there are fewer, descending. The bins are too wide to show the spikes."""

    @property
    def total(self) -> int:
        """Number of all eigenvalues."""
        return sum(self.counts) + self.zeros

    @property
    def edges(self) -> list[float]:
        """Borders of the bins in log₁₀ λ, one more than there are bins."""
        step = (self.high - self.low) / len(self.counts)
        return [self.low + k * step for k in range(len(self.counts) + 1)]

    @property
    def widths(self) -> list[float]:
        """Width of each bin in λ."""
        return [10**b - 10**a for a, b in pairwise(self.edges)]
