"""Compute the law of noise whose rows and columns have different scales.

Legend: W_ij = √(a_i·b_j)·g_ij is N × M, N >= M, with independent g of variance 1 and scales a, b of mean 1; X = WᵀW/N.
With ratio r = M/N, g(δ) = mean_i a/(1 + δa) and h(ε) = r·mean_j b/(1 + εb), the Stieltjes transform m of X is

    m(z) = −(1/z)·mean_j 1/(1 + εb),  where  z·δ + h(ε) = 0  and  z·ε + g(δ) = 0.

Inside the bulk the density is Im m/π. Outside δ and ε are real, δ·g(δ) = ε·h(ε) and z = −g(δ)/ε; an edge is an
extremum of z, which is where (δg′/g)·(εh′/h) = 1. With z ≈ λ⁺ + ½z″(δ − δ⁺)² the density ends as (c/π)·√(λ⁺ − λ), and
the largest eigenvalue fluctuates on the scale (M·c)^(−⅔). All scales equal give the law of Marchenko and Pastur and the
asymptotic scale of Johnstone (2001); for small matrices both are corrected by the ratios that hold there.

The density is found by Newton's method from the solution for equal scales; if that fails, by continuation from above
the real axis.

References: W. Hachem, P. Loubaton, J. Najim, "Deterministic equivalents for certain functionals of large random
matrices", Annals of Applied Probability 17 (2007) 875; R. Couillet, W. Hachem, "Analysis of the limiting spectral
measure of large random matrices of the separable covariance type", Random Matrices: Theory and Applications 3 (2014)
1450016; F. Yang, "Edge universality of separable covariance matrices" (2018) (https://arxiv.org/abs/1809.04572). The
formulas were checked against Marchenko-Pastur, Johnstone and simulation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import johnstone_centre, johnstone_scale
from esdmon.spectrum.marchenko1967 import mp_edges
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable_edges import SQUARE, Edges, ScaleNodes, compressed, edges_of

_Complex = NDArray[np.complex128]

_STEPS = 12  # of Newton's method at most
_LAST_STEPS = 25  # at most, on the real axis after the descent to it
_TOGETHER = 6  # of these for all points; the other steps are for unsolved points only
_FACTOR = 4.0  # by which Im z falls from one solution of the descent to the next
_NEAR = _FACTOR**-4  # Im z/Re z of the last of these
_CONVERGED = 1e-5  # relative change of δ and ε, whose error is then about its square
_REAL = 1e-6  # relative imaginary part up to which a solution may be a real one, of which only one is that of a gap
_WIDE = 1.0  # standard deviation of the logarithm of scales, 0.22 dex of rms, from which more groups are used
_LARGE = 1024  # M from which there are more groups
_ERROR = 0.15  # largest error of M·CDF, by two estimates; if both are below .25, 147 of 147 laws had errors below .8
_MOST_ANGLES = 800  # more than a table has
_ANGLES = np.linspace(0, np.pi, 513)  # of a table: linear interpolation between them has an error below 5e-6
_RISE = np.linspace(0, 1e-12, _ANGLES.size)  # keeps a flat part of a table, a gap in the spectrum, invertible
_MAX_NODES = 1 << 16  # slices · angles · nodes solved at a time: 1 MB an array


@dataclass(frozen=True, slots=True, eq=False)
class SeparableLaw:
    """The law of one slice; see `NoiseLaw`."""

    lower: float
    """λ⁻."""
    edge: float
    centre: float
    scale: float
    table: Floats
    """The CDF at equal steps of an angle θ, 0 to π, where λ = λ⁻ + (λ⁺ − λ⁻)·sin⁴(θ/2); it rises strictly."""
    at_edge: tuple[float, float]
    """(δ, ε) at λ⁺."""

    def cdf(self, lam: Floats) -> Floats:
        """Return P(eigenvalue <= λ)."""
        place = np.clip((np.asarray(lam, dtype=np.float64) - self.lower) / (self.edge - self.lower), 0, 1)
        return np.interp(2 * np.arcsin(place**0.25), _ANGLES, self.table)

    def quantile(self, p: Floats) -> Floats:
        """Return λ with cdf(λ) = p."""
        angle = np.interp(np.asarray(p, dtype=np.float64), self.table, _ANGLES)
        return self.lower + (self.edge - self.lower) * np.sin(angle / 2) ** 4


def separable_laws(profile: Profile) -> tuple[SeparableLaw, ...]:
    """Return the law of each slice of a profile."""
    n, m = profile.rows.shape[1], profile.columns.shape[1]
    is_wide = max(np.log(s).std() for s in (profile.rows, profile.columns)) > _WIDE
    nodes = compressed(profile, *_groups(n, m, is_wide=is_wide))
    edges = edges_of(nodes, m)
    tables = _tables(nodes, edges, min(64, max(24, m // 8)), _ERROR / m)
    finite_centre = johnstone_centre(n, m) / mp_edges(n / m)[1]
    finite_scale = johnstone_scale(n, m) / _asymptotic_scale(n, m)
    return tuple(
        SeparableLaw(float(lower), float(upper), float(upper) * finite_centre, float(scale) * finite_scale, table, at)
        for lower, upper, scale, table, at in zip(
            edges.lower, edges.upper, edges.scale, tables, edges.solution_at_upper(nodes.ratio), strict=True
        )
    )


def edge_weights(profile: Profile, laws: Sequence[SeparableLaw]) -> tuple[Floats, Floats]:
    """Return the derivatives ∂log λ⁺/∂log a and ∂log λ⁺/∂log b for each scale, (slices, N) and (slices, M).

    They are proportional to a/(1 + δa)² and b/(1 + εb)² at λ⁺, which is an extremum, and their sum over a side is 1.
    """
    delta, epsilon = np.array([law.at_edge for law in laws]).T
    return _weights(profile.rows, delta), _weights(profile.columns, epsilon)


def _weights(scales: Floats, at_edge: Floats) -> Floats:
    slopes = scales / (1 + at_edge[:, None] * scales) ** 2
    return slopes / slopes.sum(axis=1, keepdims=True)


def _asymptotic_scale(n: int, m: int) -> float:
    """Return Johnstone's scale without his corrections for small matrices."""
    root_n, root_m = n**0.5, m**0.5
    return float((root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3) / n)


def _groups(n: int, m: int, *, is_wide: bool) -> tuple[int, int]:
    """Return how many of the largest scales stay single, and how many groups the others form.

    The error of the CDF must be small compared with 1/M: with 16 groups it is 11/M for scales of .3 dex at M = 2048.
    Noise spreads the eigenvalues of a scale by the relative width 2/√Q, so tall matrices need more groups.
    """
    groups = max(8, m // (24 if m < _LARGE else 12)) * (2 if is_wide else 1)
    groups = min(m, int(groups * (n / m) ** 0.5))
    return min(8, 3 + groups // 3), groups


def _tables(nodes: ScaleNodes, edges: Edges, angles: int, error: float, known: _Complex | None = None) -> Floats:
    """Return the CDF of each slice at equal steps of θ.

    The density times dλ/dθ is odd at θ = 0 and even at π, so it is a sum of sin((k + ½)θ), which is integrated term by
    term. It is integrated from the upper edge down; over all θ the integral is 1. If it is not, or if the upper half of
    the terms matters, the density has gaps and narrow bands, and the number of angles is doubled. If the integral is
    still below 1, the rest is assigned to the lower end.

    Args:
        nodes: the distributions of the scales.
        edges: edges of the same slices.
        angles: the number of steps of θ.
        error: error of the CDF above which the number of angles is doubled.
        known: (δ, ε) for half as many angles, (2, slices, angles / 2).
    """
    half = (np.arange(angles) + 0.5) * np.pi / angles / 2
    width = (edges.upper - edges.lower)[:, None]
    lam = edges.lower[:, None] + width * np.sin(half) ** 4
    starts = _starts(nodes.ratio, edges, half) if known is None else _twice_as_many(known)
    chunk = max(1, _MAX_NODES // (angles * nodes.a.shape[1]))
    parts = [slice(i, i + chunk) for i in range(0, lam.shape[0], chunk)]
    solved = [_solution(nodes.of(part), lam[part], starts[:, part], edges.upper[part]) for part in parts]
    density = np.concatenate(
        [_density(nodes.of(part), lam[part], each) for part, each in zip(parts, solved, strict=True)]
    )
    sines, integrals = _waves(angles)
    terms = density * width * 2 * np.sin(half) ** 3 * np.cos(half) @ sines
    table = 1 - terms @ integrals
    last = np.linalg.norm(terms[:, angles // 2 :], axis=1)
    rough = np.flatnonzero(np.maximum(np.abs(table[:, 0]), last) > error)
    table = np.clip(table, 0, 1)
    table[:, 0] = 0.0
    rising: Floats = np.maximum.accumulate(table, axis=1) + _RISE
    if rough.size and 2 * angles <= _MOST_ANGLES:
        solution = np.concatenate(solved, axis=1)[:, rough]
        rising[rough] = _tables(nodes.of(rough), edges.of(rough), 2 * angles, error, solution)
    return rising


@lru_cache(maxsize=16)
def _waves(angles: int) -> tuple[Floats, Floats]:
    """Return the matrices from values at the middle of each step to terms, and from terms to integrals from θ to π.

    The terms are (2/A)·Σ_j f(θ_j)·sin((k + ½)θ_j)/(k + ½), and their integrals cos((k + ½)θ).
    """
    orders = np.arange(angles) + 0.5
    sines: Floats = np.sin(np.outer(orders * np.pi / angles, orders)) * (2 / angles) / orders
    integrals: Floats = np.cos(np.outer(orders, _ANGLES))
    return sines, integrals


def _starts(ratio: float, edges: Edges, half: Floats) -> _Complex:
    """Return (2, slices, angles) estimates of (δ, ε): those for equal scales, corrected to be exact at both edges."""
    root = ratio**0.5
    equal_lower, equal_upper = (0.0 if ratio > SQUARE else (1 - root) ** 2), (1 + root) ** 2
    z = equal_lower + (equal_upper - equal_lower) * np.sin(half) ** 4
    m = (1 - ratio - z + np.sqrt((z + ratio - 1) ** 2 - 4 * ratio * z + 0j)) / (2 * ratio * z)
    m = m.real + 1j * np.abs(m.imag)
    equal = np.stack((ratio * m, -1 / (z * m) - 1))
    towards = np.sin(half) ** 2
    factors = edges.at_upper[..., None] ** towards * edges.at_lower[..., None] ** (1 - towards)
    return equal[:, None, :] * factors


def _twice_as_many(known: _Complex) -> _Complex:
    """Return (δ, ε) interpolated at the middles of half steps of θ, from those at the middles of whole steps."""
    before = np.concatenate((known[..., :1], known[..., :-1]), axis=-1)
    after = np.concatenate((known[..., 1:], known[..., -1:]), axis=-1)
    return np.stack((3 * known + before, 3 * known + after), axis=-1).reshape(*known.shape[:-1], -1) / 4


def _density(nodes: ScaleNodes, lam: Floats, solution: _Complex) -> Floats:
    """Return Im m/π for (slices, angles) values of λ and their (δ, ε); never negative."""
    terms = nodes.weights[1][:, None, :] / (1 + solution[1][..., None] * nodes.b[:, None, :])
    return np.maximum(-(terms.sum(-1) / lam).imag, 0) / np.pi


def _solution(nodes: ScaleNodes, lam: Floats, starts: _Complex, upper: Floats) -> _Complex:
    """Return (δ, ε) for (slices, angles) values of λ, up to `upper` in each slice, from estimates of them."""
    solution, is_solved = _newton(nodes, lam.astype(complex), starts, _STEPS)
    is_solved &= (solution.imag > _REAL * np.abs(solution)).all(axis=0)
    if not is_solved.all():  # most of these lie below the bulk or in a gap
        slices, angles = np.nonzero(~is_solved)
        nodes, lam = nodes.of(slices), lam[slices, angles, None]
        above = _above(nodes, lam, starts[:, slices, angles, None], upper[slices, None])
        found, is_found = _newton(nodes, lam.astype(complex), above, _LAST_STEPS, may_be_real=True)
        solution[:, slices, angles] = np.where(is_found, found, above)[..., 0]
    return solution


def _above(nodes: ScaleNodes, lam: Floats, starts: _Complex, upper: Floats) -> _Complex:
    """Return (δ, ε) a little above the real axis, for (points, 1) values of λ.

    There only one solution has positive imaginary parts. Newton's method finds it from most interpolated estimates; the
    other points are solved by continuation.
    """
    raised: _Complex = starts.real + 1j * np.maximum(starts.imag, _NEAR * np.abs(starts.real))
    solution, is_solved = _newton(nodes, lam + 1j * _NEAR * lam, raised, _STEPS)
    rest = np.flatnonzero(~is_solved)
    if rest.size:
        solution[:, rest] = _descended(nodes.of(rest), lam[rest], upper[rest])
    return solution


def _descended(nodes: ScaleNodes, lam: Floats, upper: Floats) -> _Complex:
    """Return (δ, ε) a little above the real axis, by continuation from Im z = λ⁺ down.

    The first solution is found from the one for |z| → ∞, and each next one from a geometric extrapolation of the last
    two. If Newton's method fails, the last solution is returned.
    """
    at_infinity = -(nodes.balanced_weights() * nodes.values).sum(-1)[::-1, :, None]
    height = np.maximum(upper, lam)
    before: _Complex = at_infinity / (lam + 1j * _FACTOR * height)
    solution: _Complex = at_infinity / (lam + 1j * height)
    start = solution
    for _ in range(1 + math.ceil(math.log((height / (_NEAR * lam)).max(), _FACTOR))):
        found, is_solved = _newton(nodes, lam + 1j * height, start, _STEPS)
        before, solution = solution, np.where(is_solved, found, solution)
        ahead = solution**2 / before
        start = np.where(ahead.imag > 0, ahead, solution)
        height = np.maximum(height / _FACTOR, _NEAR * lam)
    return solution


def _newton(
    nodes: ScaleNodes, z: _Complex, start: _Complex, steps: int, *, may_be_real: bool = False
) -> tuple[_Complex, NDArray[np.bool_]]:
    """Solve z·δ + h(ε) = 0 and z·ε + g(δ) = 0 for (slices, angles) values of z; return (δ, ε) and where it is solved.

    Both imaginary parts are positive within the bulk; below it and in its gaps the solution is real.
    """
    values = nodes.values[:, :, None, :]
    weights = nodes.balanced_weights() * nodes.values
    weights_of_slopes = weights * nodes.values
    t = start
    for _ in range(min(steps, _TOGETHER)):
        q = 1 / (1 + t[..., None] * values)
        gh = np.einsum("asnk,ask->asn", q, weights)  # not a matrix product: the BLAS would start its threads
        q *= q
        slopes = -np.einsum("asnk,ask->asn", q, weights_of_slopes)
        hg = gh[::-1]
        error = z * t + hg
        change = (z * error - slopes[::-1] * error[::-1]) / (z * z - slopes[0] * slopes[1])
        new = t - change
        size = np.max(np.abs(change) / np.abs(t), axis=0)
        is_bad = size > 1
        if not may_be_real:
            is_bad |= (new.imag <= 0).any(axis=0)
        t = np.where(is_bad, t if may_be_real else (t - hg / z) / 2, new) if is_bad.any() else new
        is_solved = (size < _CONVERGED) & ~is_bad
        if is_solved.all():
            return t, is_solved
    if steps > _TOGETHER:
        slices, points = np.nonzero(~is_solved)
        rest, is_rest_solved = _newton(
            nodes.of(slices),
            z[slices, points, None],
            t[:, slices, points, None],
            steps - _TOGETHER,
            may_be_real=may_be_real,
        )
        t[:, slices, points], is_solved[slices, points] = rest[..., 0], is_rest_solved[:, 0]
    return t, is_solved
