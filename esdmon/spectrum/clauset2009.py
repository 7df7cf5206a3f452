"""Fit a power-law tail: alpha by maximum likelihood, xmin by the smallest Kolmogorov-Smirnov distance.

Legend: x are the eigenvalues, ascending; a candidate k takes xmin = x_k and the tail {x >= x_k}, of n_k values;
p(x) ~ x^(−alpha) for x >= xmin; β = alpha − 1.

Reference: A. Clauset, C. R. Shalizi, M. E. J. Newman, "Power-law distributions in empirical data",
SIAM Review 51 (2009) 661 (https://arxiv.org/abs/0706.1062): alpha by eq. 3.1, its standard error by
eq. 3.2, xmin by §3.3.

The distance is one-sided, D_k = max_j |F_k(x_j) − (number of tail values below x_j)/n_k|, as in the `powerlaw`
package (with its default range of alpha, [0, 3], removed) and in WeightWatcher, so that the numbers agree with theirs
to the last digit. Every distinct eigenvalue but the largest is a candidate, and equal ones count once in the distance,
as in `powerlaw`; WeightWatcher counts each of them, so its results differ on rounded data.

The search is pruned, because computing D at all n candidates costs n²/2 powers. The maximum deviation over a few points
of a tail is a lower bound of its D, which is enough to discard nearly all candidates. The result is exact.
"""

from dataclasses import dataclass

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import Floats, Indices

_TAIL_POINTS = (16, 128)  # points of a tail used by successive lower bounds
_PROBES = 2  # candidates whose D is computed exactly after each bound, to find a good D early
_CHUNK = 64  # candidates whose bounds are raised together in the search for the first that qualifies
_BLOCK = 1 << 15  # elements of the working matrix: keeps it in cache
# Range of alpha: candidates whose D is within 10 % of the best count as equally good. Our choice: the width of the
# range is 5 to 25 on pure noise and a few hundredths on trained layers, so it separates the two.
NEAR_BEST = 1.1
SAME = 1e-5
"""ln(λmax/λmin) up to which eigenvalues differ by the noise of a float32 solver only. Our choice."""


@dataclass(frozen=True, slots=True)
class PowerLawFit:
    """A fitted tail p(x) ~ x^(−alpha), x >= xmin. Without a fit values are NaN, n_tail is 0 and `reason` is set."""

    alpha: float = np.nan
    """Exponent of the density of eigenvalues, above 1."""
    alpha_stderr: float = np.nan
    """Standard error of alpha: (alpha − 1)/√n_tail."""
    alpha_low: float = np.nan
    """Smallest alpha among the candidates for xmin with D <= 1.1 × the best D."""
    alpha_high: float = np.nan
    """Largest alpha among the same candidates."""
    xmin: float = np.nan
    """Smallest value of the tail, in the units of the eigenvalues."""
    ks_distance: float = np.nan
    """D of the best candidate, in [0, 1]."""
    n_tail: int = 0
    """Number of eigenvalues at or above xmin."""
    reason: str = ""
    """Reason why there is no fit; empty if there is one."""


@explain_wrong_calls
def fit_power_law(eigenvalues: Floats) -> PowerLawFit:
    """Fit alpha = 1 + n/Σ ln(x_i/xmin) on the tail with the smallest Kolmogorov-Smirnov distance.

    Args:
        eigenvalues: 1-D, any order; values that are not positive and finite are left out.

    Returns:
        The fit. For fewer than two distinct positive values, or for equal values, a `PowerLawFit` with a `reason`.

    >>> x = (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / 1.5)  # quantiles of a Pareto law with alpha = 2.5
    >>> round(fit_power_law(x).alpha, 2)
    2.5
    """
    x = np.asarray(eigenvalues, dtype=np.float64)
    x = np.sort(x[np.isfinite(x) & (x > 0)])
    every = np.log(x)
    first = np.flatnonzero(np.diff(every, prepend=-np.inf))
    log = every[first]
    if log.size < 2:
        return PowerLawFit(reason=f"{log.size} distinct positive eigenvalues, a tail needs at least 2")
    if log[-1] - log[0] < SAME:
        return PowerLawFit(reason=f"all {x.size} eigenvalues are equal")
    tails = _Tails(log, first, x.size)
    distance = _Distances(tails)
    best = distance.best()
    low, high = distance.range_of_beta(NEAR_BEST * distance.known[best])
    n = int(tails.count[best])
    alpha = float(1 + tails.beta[best])
    return PowerLawFit(
        alpha=alpha,
        alpha_stderr=(alpha - 1) / n**0.5,
        alpha_low=1 + low,
        alpha_high=1 + high,
        xmin=float(x[first[best]]),
        ks_distance=float(distance.known[best]),
        n_tail=n,
    )


class _Tails:
    """All candidates k: ln x_k, the number of eigenvalues below x_k, n_k and β_k. The last value is not one."""

    def __init__(self, log: Floats, below: Indices, total: int) -> None:
        self.log = log
        self.below = below.astype(np.float64)
        count = total - self.below
        # S_k = Σ_{x >= x_k} ln(x/x_k) by S_k = S_{k+1} + n_{k+1}·ln(x_{k+1}/x_k): all terms positive, so nothing
        # cancels, where Σ ln x − n·ln x_k would lose the digits of a tight tail.
        log_sums = np.cumsum((count[1:] * np.diff(self.log))[::-1])[::-1]
        # A tail of eigenvalues that are equal up to rounding, as those of a repeated block are, has no exponent.
        spread = np.searchsorted(log, log[-1] - SAME, side="right")
        self.count = count[:spread]
        self.beta = self.count / log_sums[:spread]

    def deviation(self, k: Indices | np.intp, at: Indices | slice) -> Floats:
        """Return |F_k(x) − ECDF_k(x)| at the values numbered `at`, which broadcast against the candidates k.

        It works in place from the second operation on, because most of the time of a fit is spent here.
        """
        ecdf = self.below[at] - self.below[k]
        ecdf /= self.count[k]
        survival = self.log[at] - self.log[k]
        survival *= -self.beta[k]
        np.expm1(survival, out=survival)
        survival += ecdf
        return np.abs(survival, out=survival)


class _Distances:
    """Distances D_k, computed only where needed: `known[k]` is D_k or +inf, and `bound[k] <= D_k` always."""

    def __init__(self, tails: _Tails) -> None:
        self.tails = tails
        self.known = np.full(tails.count.size, np.inf)
        self.bound = np.zeros(tails.count.size)
        self.sampled = np.zeros(tails.count.size, dtype=np.intp)

    def best(self) -> int:
        """Return the candidate with the smallest D, and the smallest xmin among equals."""
        alive = np.arange(self.known.size)
        for points in _TAIL_POINTS:
            self._raise_bounds(alive, points)
            probes = np.argpartition(self.bound[alive], min(_PROBES, alive.size) - 1)[:_PROBES]
            self._take(alive[probes])
            alive = alive[self.bound[alive] <= self.known.min()]
        order = alive[np.argsort(self.bound[alive], kind="stable")]
        start, size = 0, _PROBES
        while start < order.size and self.bound[order[start]] <= self.known.min():
            self._take(order[start : start + size])
            start, size = start + size, size * 2
        return int(np.argmin(self.known))

    def range_of_beta(self, limit: float) -> tuple[float, float]:
        """Return the smallest and the largest β among all candidates with D <= limit.

        The candidates are tried in ascending and in descending order of β until one qualifies, so most D are never
        computed.
        """
        alive = np.flatnonzero(self.bound <= limit)
        by_beta = alive[np.argsort(self.tails.beta[alive], kind="stable")]
        low, high = self._first(by_beta, limit), self._first(by_beta[::-1], limit)
        return float(self.tails.beta[low]), float(self.tails.beta[high])

    def _first(self, candidates: Indices, limit: float) -> int:
        """Return the first candidate with D <= limit; the caller knows that there is one."""
        for start in range(0, candidates.size, _CHUNK):
            chunk = candidates[start : start + _CHUNK]
            for points in _TAIL_POINTS:
                self._raise_bounds(chunk[(self.bound[chunk] <= limit) & (self.sampled[chunk] < points)], points)
            for k in chunk[self.bound[chunk] <= limit]:
                self._take(np.array([k]))
                if self.known[k] <= limit:
                    return int(k)
        msg = "no candidate within the limit, which the best one always is"
        raise AssertionError(msg)

    def _raise_bounds(self, candidates: Indices, points: int) -> None:
        """Raise each bound to the largest deviation at `points` places spread over the candidate's tail."""
        last = self.tails.log.size - 1
        fraction = np.arange(1, points + 1)[:, None] / (points + 1)
        rows = _BLOCK // points
        for start in range(0, candidates.size, rows):
            k = candidates[start : start + rows]
            at = k + ((last - k) * fraction).astype(np.intp)
            self.bound[k] = np.maximum(self.bound[k], self.tails.deviation(k, at).max(axis=0))
        self.sampled[candidates] = points

    def _take(self, candidates: Indices) -> None:
        """Compute D exactly for these candidates."""
        for k in candidates[np.isinf(self.known[candidates])]:
            self.known[k] = self.bound[k] = self.tails.deviation(k, slice(k, None)).max()
