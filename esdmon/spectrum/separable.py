"""Compute the law of noise whose rows and columns have scales of their own.

Legend: W_ij = √(a_i·b_j)·g_ij is N × M, N >= M, with independent g of variance 1 and scales a, b of mean 1; X = WᵀW/N.
With ratio r = M/N, g(δ) = mean_i a/(1 + δa) and h(ε) = r·mean_j b/(1 + εb), the Stieltjes transform m of X is

    m(z) = −(1/z)·mean_j 1/(1 + εb),  where  z·δ + h(ε) = 0  and  z·ε + g(δ) = 0.

Inside the bulk the density is Im m/π. Outside δ and ε are real, δ·g(δ) = ε·h(ε) and z = −g(δ)/ε; an edge is an
extremum of z, which is where (δg′/g)·(εh′/h) = 1. With z ≈ λ⁺ + ½z″(δ − δ⁺)² the density ends as (c/π)·√(λ⁺ − λ), and
the largest eigenvalue fluctuates on the scale (M·c)^(−⅔). All scales equal give the law of Marchenko and Pastur and the
asymptotic scale of Johnstone (2001); for small matrices both are corrected by the ratios that hold there.

The scales enter by their distribution only, which is replaced by one of few nodes that has the same moments in each of
several groups. The density is found by Newton's method, from above the real axis down to it.

References: W. Hachem, P. Loubaton, J. Najim, "Deterministic equivalents for certain functionals of large random
matrices", Annals of Applied Probability 17 (2007) 875; R. Couillet, W. Hachem, "Analysis of the limiting spectral
measure of large random matrices of the separable covariance type", Random Matrices: Theory and Applications 3 (2014)
1450016; F. Yang, "Edge universality of separable covariance matrices" (2018) (https://arxiv.org/abs/1809.04572). The
formulas were checked against Marchenko-Pastur, Johnstone and simulation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import johnstone_centre, johnstone_scale
from esdmon.spectrum.marchenko1967 import mp_edges
from esdmon.spectrum.scales import Profile

_Complex = NDArray[np.complex128]

_SQUARE = 0.999  # M/N from which the lower edge is taken as 0
_HEIGHTS = ((1.0, 3), (0.1, 4), (0.02, 5), (0.0, 25))  # (Im z/Re z, Newton steps at most) on the way to the real axis
_CONVERGED = 1e-7  # relative change of δ and ε
_EDGE_STEPS = 30
_APART = (
    2.5  # λ⁺ in units of that of equal scales, from which more angles are taken: large rows lie apart from the bulk
)
_WIDE = 1.0  # standard deviation of the logarithm of scales, 0.22 dex of rms, from which more nodes are taken
_REFINED = 8  # steps of the table for one of the integration; our choice
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
    """The CDF at equal steps of an angle θ, 0 to π, where λ = λ⁻ + (λ⁺ − λ⁻)·sin⁴(θ/2)."""

    def cdf(self, lam: Floats) -> Floats:
        """Return P(eigenvalue <= λ)."""
        place = np.clip((np.asarray(lam, dtype=np.float64) - self.lower) / (self.edge - self.lower), 0, 1)
        cdf: Floats = np.interp(2 * np.arcsin(place**0.25), self._angles(), self.table)
        return cdf

    def quantile(self, p: Floats) -> Floats:
        """Return λ with cdf(λ) = p."""
        # The slope keeps a flat part of the table, a gap in the spectrum, invertible.
        rising = self.table + np.linspace(0, 1e-12, self.table.size)
        angle = np.interp(np.asarray(p, dtype=np.float64), rising, self._angles())
        lam: Floats = self.lower + (self.edge - self.lower) * np.sin(angle / 2) ** 4
        return lam

    def _angles(self) -> Floats:
        return np.linspace(0, np.pi, self.table.size)


class _Nodes(NamedTuple):
    """Distributions of scales, one for each slice, as (slices, K) values and weights."""

    a: Floats
    a_weights: Floats
    b: Floats
    b_weights: Floats
    ratio: float

    def of(self, slices: slice) -> "_Nodes":
        """Return those of some slices."""
        return _Nodes(self.a[slices], self.a_weights[slices], self.b[slices], self.b_weights[slices], self.ratio)


def separable_laws(profile: Profile) -> tuple[SeparableLaw, ...]:
    """Return the law of each slice of a profile."""
    n, m = profile.rows.shape[1], profile.columns.shape[1]
    top, groups, angles = _resolution(m, is_wide=max(np.log(s).std() for s in (profile.rows, profile.columns)) > _WIDE)
    nodes = _Nodes(*_compressed(profile.rows, top, groups), *_compressed(profile.columns, top, groups), m / n)
    delta, epsilon = _upper_edge(nodes)
    edge, scale = _edge_and_scale(nodes, delta, epsilon, m)
    lower = _lower_edge(nodes)
    if edge.max() > _APART * mp_edges(n / m)[1]:
        angles *= 4
    tables = _tables(nodes, lower, edge, angles)
    finite_centre = johnstone_centre(n, m) / mp_edges(n / m)[1]
    finite_scale = johnstone_scale(n, m) / _asymptotic_scale(n, m)
    return tuple(
        SeparableLaw(float(lo), float(up), float(up) * finite_centre, float(s) * finite_scale, table)
        for lo, up, s, table in zip(lower, edge, scale, tables, strict=True)
    )


def _asymptotic_scale(n: int, m: int) -> float:
    """Return Johnstone's scale without his corrections for small matrices."""
    root_n, root_m = n**0.5, m**0.5
    return float((root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3) / n)


def _resolution(m: int, *, is_wide: bool) -> tuple[int, int, int]:
    """Return how many of the largest scales stay single, how many groups the others form, and the number of angles.

    The CDF has to be right to a small part of 1/M.
    """
    groups, angles = min(16, max(6, m // 32)), min(160, max(32, m // 5))
    if is_wide:
        groups, angles = 2 * groups, 2 * angles
    return min(8, 3 + groups // 3), groups, angles


def _compressed(scales: Floats, top: int, groups: int) -> tuple[Floats, Floats]:
    """Return (slices, K) nodes and weights: the largest scales, and for each group of the others two nodes.

    The two nodes have the mean, variance and third moment of the group (Gauss quadrature).
    """
    values = np.sort(scales, axis=1)
    slices, count = values.shape
    if count <= top + 2 * groups:
        return values, np.full_like(values, 1 / count)
    rest = values[:, : count - top]
    start = np.linspace(0, rest.shape[1], groups + 1).astype(int)
    sizes, start = np.diff(start), start[:-1]
    mean = np.add.reduceat(rest, start, axis=1) / sizes
    deviation = rest - np.repeat(mean, sizes, axis=1)
    variance = np.add.reduceat(deviation**2, start, axis=1) / sizes
    third = np.add.reduceat(deviation**3, start, axis=1) / sizes
    is_single = variance <= 1e-24 * mean**2
    skew = np.where(is_single, 0.0, third / (2 * np.where(is_single, 1.0, variance)))
    width = np.sqrt(np.where(is_single, 0.0, variance) + skew**2)
    share = np.where(is_single, 0.5, (width + skew) / (2 * np.where(is_single, 1.0, width)))
    pairs = np.stack((mean + skew - width, mean + skew + width), axis=2).reshape(slices, -1)
    weights = np.stack((share * sizes, (1 - share) * sizes), axis=2).reshape(slices, -1)
    nodes = np.concatenate((pairs, values[:, count - top :]), axis=1)
    return nodes, np.concatenate((weights, np.ones((slices, top))), axis=1) / count


def _powers(t: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return Σ w·p, Σ w·p² and Σ w·p³ with p = y/(1 + t·y); t is (slices, …), y and w are (slices, K)."""
    extra = (slice(None),) + (None,) * (t.ndim - 1)
    p = y[extra] / (1 + t[..., None] * y[extra])
    w = weights[extra]
    wp = w * p
    wpp = wp * p
    return wp.sum(-1), wpp.sum(-1), (wpp * p).sum(-1)


def _upper_edge(nodes: _Nodes) -> tuple[Floats, Floats]:
    """Return (δ, ε) at λ⁺ for each slice.

    In x = −δ·max a and y = −ε·max b, both in (0, 1), the equations are ln(−δg) = ln(−εh) and ln(δg′/g)·… = 0, whose
    sides rise with x and y. The crossing is found on a grid of logits and finished by Newton's method.
    """
    largest_a, largest_b = nodes.a.max(1), nodes.b.max(1)
    ya, yb = nodes.a / largest_a[:, None], nodes.b / largest_b[:, None]

    def sides(logit: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return ln s and ln p for s = x·Σ wy/(1 − xy) and p = −d ln(s/x)/d ln x, and their derivatives."""
        x = 1 / (1 + np.exp(-logit))
        s0, s1, s2 = _powers(-x, y, weights)
        slope = x * (1 - x)
        return np.log(x * s0), np.log(x * s1 / s0), slope * (1 / x + s1 / s0), slope * (1 / x + 2 * s2 / s1 - s1 / s0)

    grid = np.broadcast_to(np.linspace(-10, 14, 49), (ya.shape[0], 49))
    s_a, p_a, *_ = sides(grid, ya, nodes.a_weights)
    s_b, p_b, *_ = sides(grid, yb, nodes.b_weights)
    s_b = s_b + np.log(nodes.ratio)
    u, v = np.empty(ya.shape[0]), np.empty(ya.shape[0])
    for i in range(ya.shape[0]):
        product = p_a[i] + np.interp(s_a[i], s_b[i], p_b[i], left=-50, right=50)
        s = np.interp(0.0, product, s_a[i])
        u[i], v[i] = np.interp(s, s_a[i], grid[i]), np.interp(s, s_b[i], grid[i])
    for _ in range(_EDGE_STEPS):
        s_a, p_a, ds_a, dp_a = sides(u, ya, nodes.a_weights)
        s_b, p_b, ds_b, dp_b = sides(v, yb, nodes.b_weights)
        first, second = s_a - s_b - np.log(nodes.ratio), p_a + p_b
        determinant = ds_a * dp_b + ds_b * dp_a
        u = u - np.clip((first * dp_b + ds_b * second) / determinant, -2, 2)
        v = v - np.clip((ds_a * second - dp_a * first) / determinant, -2, 2)
        if max(np.abs(first).max(), np.abs(second).max()) < 1e-11:
            break
    return -1 / (1 + np.exp(-u)) / largest_a, -1 / (1 + np.exp(-v)) / largest_b


def _edge_and_scale(nodes: _Nodes, delta: Floats, epsilon: Floats, m: int) -> tuple[Floats, Floats]:
    """Return λ⁺ and (M·c)^(−⅔) from (δ, ε) at the edge."""
    g, g1, g2 = (sign * x for sign, x in zip((1, -1, 2), _powers(delta, nodes.a, nodes.a_weights), strict=True))
    h, h1, h2 = (
        nodes.ratio * sign * x for sign, x in zip((1, -1, 2), _powers(epsilon, nodes.b, nodes.b_weights), strict=True)
    )
    z = -g / epsilon
    # Derivatives along δ·g(δ) = ε·h(ε).
    left, left2 = g + delta * g1, 2 * g1 + delta * g2
    right, right2 = h + epsilon * h1, 2 * h1 + epsilon * h2
    slope = left / right
    bend = (left2 - right2 * slope**2) / right
    curvature = z * (g2 / g - bend / epsilon)  # z″, where z′ = 0
    weighted = (nodes.b / (1 + epsilon[:, None] * nodes.b) ** 2 * nodes.b_weights).sum(1)
    c = np.abs(slope) / z * weighted * np.sqrt(2 / curvature)
    return z, (m * c) ** (-2 / 3)


def _lower_edge(nodes: _Nodes) -> Floats:
    """Return λ⁻ for each slice; 0 for square matrices.

    There δ > 0 and ε < −1/min b. Both sides are found on grids, to a few parts in a thousand: λ⁻ only places angles.
    """
    slices = nodes.a.shape[0]
    if nodes.ratio > _SQUARE:
        return np.zeros(slices)
    steps = np.exp(np.linspace(-12, 18, 61))
    delta = np.broadcast_to(steps, (slices, steps.size))
    epsilon = -(1 + steps) / nodes.b.min(1)[:, None]
    s0, s1, _ = _powers(delta, nodes.a, nodes.a_weights)
    t0, t1, _ = _powers(epsilon, nodes.b, nodes.b_weights)
    s_a, p_a = np.log(delta * s0), np.log(delta * s1 / s0)
    s_b, p_b = np.log(nodes.ratio * epsilon * t0)[:, ::-1], np.log(epsilon * t1 / t0)[:, ::-1]
    edge = np.empty(slices)
    for i in range(slices):
        product = p_a[i] + np.interp(s_a[i], s_b[i], p_b[i], left=-50, right=50)
        s = np.interp(0.0, product, s_a[i])
        at = np.exp(np.interp(s, s_a[i], np.log(delta[i])))
        g = float((nodes.a[i] / (1 + at * nodes.a[i]) * nodes.a_weights[i]).sum())
        edge[i] = g / np.exp(np.interp(s, s_b[i], np.log(-epsilon[i])[::-1]))
    return edge


def _tables(nodes: _Nodes, lower: Floats, edge: Floats, angles: int) -> Floats:
    """Return the CDF of each slice at 8·angles + 1 equal steps of θ."""
    step = np.pi / angles
    half = (np.arange(angles) + 0.5) * step / 2
    width = (edge - lower)[:, None]
    lam = lower[:, None] + width * np.sin(half) ** 4
    jacobian = width * 2 * np.sin(half) ** 3 * np.cos(half)
    chunk = max(1, _MAX_NODES // (angles * nodes.a.shape[1]))
    density = [_density(nodes.of(slice(i, i + chunk)), lam[i : i + chunk]) for i in range(0, lam.shape[0], chunk)]
    return _integrated(np.concatenate(density) * jacobian, step)


def _density(nodes: _Nodes, lam: Floats) -> Floats:
    """Return Im m/π for (slices, angles) values of λ; never negative."""
    z = lam * (1 + 1j * _HEIGHTS[0][0])
    delta = -nodes.ratio / z * (nodes.b * nodes.b_weights).sum(1)[:, None]
    epsilon = -(nodes.a * nodes.a_weights).sum(1)[:, None] / z
    for height, steps in _HEIGHTS:
        delta, epsilon = _newton(nodes, np.asarray(lam * (1 + 1j * height)), delta, epsilon, steps)
    terms = nodes.b_weights[:, None, :] / (1 + epsilon[..., None] * nodes.b[:, None, :])
    density: Floats = np.maximum(-(terms.sum(-1) / lam).imag, 0) / np.pi
    return density


def _newton(nodes: _Nodes, z: _Complex, delta: _Complex, epsilon: _Complex, steps: int) -> tuple[_Complex, _Complex]:
    """Solve z·δ + h(ε) = 0 and z·ε + g(δ) = 0 for (slices, angles) values of z."""
    is_real = bool(np.all(z.imag == 0))
    a, b = nodes.a[:, None, :], nodes.b[:, None, :]
    # The weights of Σ w·a·q and Σ w·a²·q² with q = 1/(1 + δ·a), and the same for b.
    wa, wb = nodes.a * nodes.a_weights, nodes.ratio * nodes.b * nodes.b_weights
    weights = [side[..., None].astype(complex) for side in (wa, wa * nodes.a, wb, wb * nodes.b)]
    for _ in range(steps):
        qa, qb = 1 / (1 + delta[..., None] * a), 1 / (1 + epsilon[..., None] * b)
        g, h = _dot(qa, weights[0]), _dot(qb, weights[2])
        g1, h1 = -_dot(qa * qa, weights[1]), -_dot(qb * qb, weights[3])
        first, second = z * delta + h, z * epsilon + g
        determinant = z * z - h1 * g1
        d_delta, d_epsilon = (z * first - h1 * second) / determinant, (z * second - g1 * first) / determinant
        change = np.maximum(np.abs(d_delta) / np.abs(delta), np.abs(d_epsilon) / np.abs(epsilon))
        new_delta, new_epsilon = delta - d_delta, epsilon - d_epsilon
        if is_real:  # below the bulk and in its gaps the solution is real
            is_bad = change > 1
            delta, epsilon = np.where(is_bad, delta, new_delta), np.where(is_bad, epsilon, new_epsilon)
        else:
            is_bad = (new_delta.imag <= 0) | (new_epsilon.imag <= 0) | (change > 1)
            delta = np.where(is_bad, (delta - h / z) / 2, new_delta)
            epsilon = np.where(is_bad, (epsilon - g / z) / 2, new_epsilon)
        if change.max() < _CONVERGED:
            break
    return delta, epsilon


def _dot(terms: _Complex, weights: _Complex) -> _Complex:
    """Return the weighted sums over the last axis of (slices, angles, K) terms."""
    sums: _Complex = np.matmul(terms, weights)[..., 0]
    return sums


def _integrated(density: Floats, step: float) -> Floats:
    """Return the CDF, refined, from densities at the middles of equal steps.

    It is the midpoint rule with the first term of Euler and Maclaurin. What mass is missing lies at the lower end,
    where the density of square matrices has a pole: the sum is taken from the upper edge down.
    """
    # The density vanishes at both ends: mirrored there, it has values on either side of each end.
    wide = np.concatenate((-density[:, 1::-1], density, -density[:, :-3:-1]), axis=1)
    at_ends = (9 * (wide[:, 1:-2] + wide[:, 2:-1]) - wide[:, :-3] - wide[:, 3:]) / 16
    slope = np.diff(wide[:, 1:-1], axis=1) / step
    sums = np.concatenate((np.zeros((density.shape[0], 1)), np.cumsum(density, axis=1) * step), axis=1)
    sums += step**2 / 24 * (slope - slope[:, :1])
    table = np.clip(_refined(1 - sums[:, -1:] + sums, at_ends * step), 0, 1)
    table[:, 0] = 0.0
    rising: Floats = np.maximum.accumulate(table, axis=1)
    return rising


def _refined(values: Floats, slopes: Floats) -> Floats:
    """Return values at a finer step, by cubic interpolation; slopes are per step."""
    t = np.arange(_REFINED) / _REFINED
    start, end = values[:, :-1, None], values[:, 1:, None]
    rise, fall = slopes[:, :-1, None], slopes[:, 1:, None]
    between = start + t * rise + t**2 * (3 * (end - start) - 2 * rise - fall) + t**3 * (2 * (start - end) + rise + fall)
    return np.concatenate((between.reshape(values.shape[0], -1), values[:, -1:]), axis=1)
