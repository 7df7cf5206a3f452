"""Find the edges of the law of noise whose rows and columns have different scales; `separable` has the formulas.

The law depends on the scales only through their distribution. It is replaced by a distribution on a few nodes, which
has the same moments in each of several groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esdmon.spectrum.arrays import Floats, Indices
from esdmon.spectrum.scales import Profile

_Sides = tuple[Floats, Floats, Floats, Floats]

SQUARE = 0.999
"""M/N from which the lower edge is taken as 0."""
_STEPS = 30  # of Newton's method at most
_ERROR = 1e-9  # of the equations; one more step would about square it
_LOGITS, _LOGS = np.linspace(-10, 14, 33), np.linspace(-18, 18, 49)  # where edges are searched


class ScaleNodes(NamedTuple):
    """The distributions of the scales of rows and of columns, one for each slice."""

    values: Floats
    """(2, slices, K)."""
    weights: Floats
    ratio: float

    @property
    def a(self) -> Floats:
        """Return the values for the rows, (slices, K)."""
        return self.values[0]

    @property
    def b(self) -> Floats:
        """Return the values for the columns, (slices, K)."""
        return self.values[1]

    def balanced_weights(self) -> Floats:
        """Return the weights of g(δ) and h(ε): those of the columns are multiplied by M/N."""
        return self.weights * np.array([1.0, self.ratio])[:, None, None]

    def of(self, slices: "slice | NDArray[np.intp]") -> "ScaleNodes":
        """Return the nodes of some slices."""
        return ScaleNodes(self.values[:, slices], self.weights[:, slices], self.ratio)


class Edges(NamedTuple):
    """The edges of each slice, and (δ, ε) at the edges in units of their values for equal scales."""

    lower: Floats
    upper: Floats
    scale: Floats
    """(M·c)^(−⅔), the scale on which the largest eigenvalue fluctuates."""
    at_lower: Floats
    """(2, slices)."""
    at_upper: Floats
    """(2, slices)."""

    def of(self, slices: "NDArray[np.intp]") -> "Edges":
        """Return the edges of some slices."""
        return Edges(*(values[..., slices] for values in self))

    def solution_at_upper(self, ratio: float) -> list[tuple[float, float]]:
        """Return (δ, ε) at λ⁺ for each slice."""
        delta, epsilon = self.at_upper * _equal_at_upper(ratio)
        return [*zip(map(float, delta), map(float, epsilon), strict=True)]


def compressed(profile: Profile, top: int, groups: int) -> ScaleNodes:
    """Return nodes for both sides; the side with fewer nodes is filled with repeated nodes of weight 0."""
    (a, a_weights), (b, b_weights) = (_quadrature(side, top, groups) for side in (profile.rows, profile.columns))
    ratio, missing = profile.columns.shape[1] / profile.rows.shape[1], a.shape[1] - b.shape[1]
    if missing > 0:
        b, b_weights = np.pad(b, ((0, 0), (0, missing)), mode="edge"), np.pad(b_weights, ((0, 0), (0, missing)))
    elif missing < 0:
        a, a_weights = np.pad(a, ((0, 0), (0, -missing)), mode="edge"), np.pad(a_weights, ((0, 0), (0, -missing)))
    return ScaleNodes(np.stack((a, b)), np.stack((a_weights, b_weights)), ratio)


def _quadrature(values: Floats, top: int, groups: int) -> tuple[Floats, Floats]:
    """Return (slices, K) nodes and weights of ascending scales: the largest, and two nodes for each group of others.

    The two nodes have the mean, variance and third moment of the group (Gauss quadrature).
    """
    slices, count = values.shape
    if count <= top + 2 * groups:
        return values, np.full_like(values, 1 / count)
    rest = values[:, : count - top]
    start = _starts_of_groups(rest, groups)
    sizes = np.diff(start, axis=1, append=rest.shape[1])
    places = (start + np.arange(slices)[:, None] * rest.shape[1]).ravel()

    def mean_of_groups(of: Floats) -> Floats:
        return np.add.reduceat(of.ravel(), places).reshape(slices, groups) / sizes

    mean = mean_of_groups(rest)
    deviation = rest - np.repeat(mean.ravel(), sizes.ravel()).reshape(rest.shape)
    variance, third = mean_of_groups(deviation**2), mean_of_groups(deviation**3)
    is_single = variance <= 1e-24 * mean**2
    skew = np.where(is_single, 0.0, third / (2 * np.where(is_single, 1.0, variance)))
    width = np.sqrt(np.where(is_single, 0.0, variance) + skew**2)
    share = np.where(is_single, 0.5, (width + skew) / (2 * np.where(is_single, 1.0, width)))
    lower = np.maximum(mean + skew - width, rest.ravel()[places].reshape(slices, groups))  # if the difference cancels
    pairs = np.stack((lower, mean + skew + width), axis=2).reshape(slices, -1)
    weights = np.stack((share * sizes, (1 - share) * sizes), axis=2).reshape(slices, -1)
    nodes = np.concatenate((pairs, values[:, count - top :]), axis=1)
    return nodes, np.concatenate((weights, np.ones((slices, top))), axis=1) / count


def _starts_of_groups(ascending: Floats, groups: int) -> Indices:
    """Return where groups of scales start, (slices, groups): with equal sums of 1 + a/mean a + (1/a)/mean 1/a.

    If scales differ much, a few large ones have most of Σ a, which determines the upper edge, and a few small ones most
    of Σ 1/a, which determines the lower edge. Groups with equal numbers of scales would merge these with others.
    """
    count = ascending.shape[1]
    shares = [np.ones_like(ascending), ascending, 1 / ascending]
    share = sum(side / side.sum(axis=1, keepdims=True) for side in shares)
    before = np.cumsum(share, axis=1) - share
    order = np.arange(groups)
    start = np.stack([np.searchsorted(row, 3 * order / groups) for row in before])
    start = np.maximum.accumulate(start - order, axis=1) + order  # at least one scale in each group
    return np.minimum(start, count - groups + order)


def edges_of(nodes: ScaleNodes, m: int) -> Edges:
    """Return the edges of each slice.

    For square matrices λ⁻ = 0, and δ and ε diverge there. The limits of their ratios to the values for equal scales are
    used, at equal fractions of the way from λ⁻ to λ⁺.
    """
    root = nodes.ratio**0.5
    at_upper = _upper_edge(nodes)
    upper, scale = _upper_and_scale(nodes, at_upper, m)
    at_upper = at_upper / _equal_at_upper(nodes.ratio)
    if nodes.ratio > SQUARE:
        inverse = (nodes.weights / nodes.values).sum(-1)
        balance = np.sqrt(inverse[0] / inverse[1])
        limits = np.stack((balance, 1 / balance)) * (1 + root) / np.sqrt(upper)
        return Edges(np.zeros_like(upper), upper, scale, limits, at_upper)
    at_lower = _lower_edge(nodes)
    g = (nodes.weights[0] * nodes.a / (1 + at_lower[0][:, None] * nodes.a)).sum(1)
    return Edges(-g / at_lower[1], upper, scale, at_lower / np.array([[root], [-1.0]]) * (1 - root), at_upper)


def _equal_at_upper(ratio: float) -> Floats:
    """Return (δ, ε) at λ⁺ of equal scales, (2, 1)."""
    root = ratio**0.5
    return np.array([[-root], [-1.0]]) / (1 + root)


def _powers(t: Floats, y: Floats, weights: Floats) -> Floats:
    """Return Σ w·p, Σ w·p² and Σ w·p³ with p = y/(1 + t·y); t is (2, slices) or (2, slices, points)."""
    values = y if t.ndim == 2 else y[:, :, None]
    p = values / (1 + t[..., None] * values)
    powers = np.stack((p, p * p, p * p * p))
    return np.einsum("pasnk,ask->pasn" if t.ndim == 3 else "pask,ask->pas", powers, weights)


def _upper_edge(nodes: ScaleNodes) -> Floats:
    """Return (δ, ε) at λ⁺, (2, slices), where −δ·max a and −ε·max b are in (0, 1): their logits are searched."""
    largest = nodes.values.max(-1)
    values, weights = nodes.values / largest[..., None], nodes.balanced_weights()

    def sides(logits: Floats) -> _Sides:
        x = 1 / (1 + np.exp(-logits))
        s0, s1, s2 = _powers(-x, values, weights)
        slope = x * (1 - x)
        return np.log(x * s0), np.log(x * s1 / s0), slope * (1 / x + s1 / s0), slope * (1 / x + 2 * s2 / s1 - s1 / s0)

    return -1 / (1 + np.exp(-_crossing(sides, _LOGITS, slices=values.shape[1]))) / largest


def _lower_edge(nodes: ScaleNodes) -> Floats:
    """Return (δ, ε) at λ⁻, (2, slices), of matrices that are not square.

    There δ > 0 and −ε·min b > 1: the logarithms of δ and of 1/(−ε·min b − 1) are searched.
    """
    smallest = nodes.values.min(-1)
    values, weights = nodes.values / smallest[..., None], nodes.balanced_weights()
    signs = np.array([1.0, -1.0])

    def sides(logs: Floats) -> _Sides:
        sign = signs.reshape(2, *(1,) * (logs.ndim - 1))
        slope = np.exp(sign * logs)
        x = sign * slope - (sign < 0)
        s0, s1, s2 = _powers(x, values, weights)
        return np.log(x * s0), np.log(x * s1 / s0), slope * (1 / x - s1 / s0), slope * (1 / x - 2 * s2 / s1 + s1 / s0)

    logs = _crossing(sides, _LOGS, slices=values.shape[1])
    return np.stack((np.exp(logs[0]), -1 - np.exp(-logs[1]))) / smallest


def _crossing(sides: Callable[[Floats], _Sides], grid: Floats, *, slices: int) -> Floats:
    """Solve s_a(u) = s_b(v) and p_a(u) + p_b(v) = 0 for each slice, on a grid and then by Newton's method.

    These are δg = εh and (δg′/g)·(εh′/h) = 1 in logarithms: s is that of |δg| and p that of |δg′/g|. `sides` takes
    (2, slices, …) values (u, v) and returns s, p and their derivatives, of which s and p rise.
    """
    s, p, *_ = sides(np.broadcast_to(grid, (2, slices, grid.size)))
    uv = np.empty((2, slices))
    for i in range(slices):
        product = p[0, i] + np.interp(s[0, i], s[1, i], p[1, i], left=-50, right=50)
        place = np.interp(0.0, product, s[0, i])
        uv[:, i] = np.interp(place, s[0, i], grid), np.interp(place, s[1, i], grid)
    for _ in range(_STEPS):
        s, p, ds, dp = sides(uv)
        first, second = s[0] - s[1], p[0] + p[1]
        if max(np.abs(first).max(), np.abs(second).max()) < _ERROR:
            break
        steps = np.stack((first * dp[1] + ds[1] * second, ds[0] * second - dp[0] * first))
        uv = uv - np.clip(steps / (ds[0] * dp[1] + ds[1] * dp[0]), -2, 2)
    return uv


def _upper_and_scale(nodes: ScaleNodes, at_edge: Floats, m: int) -> tuple[Floats, Floats]:
    """Return λ⁺ and (M·c)^(−⅔) from (δ, ε) at the edge."""
    s0, s1, s2 = _powers(at_edge, nodes.values, nodes.balanced_weights())
    (g, h), (g1, h1), (g2, h2) = s0, -s1, 2 * s2
    delta, epsilon = at_edge
    z = -g / epsilon
    # Derivatives along δ·g(δ) = ε·h(ε).
    left, left2 = g + delta * g1, 2 * g1 + delta * g2
    right, right2 = h + epsilon * h1, 2 * h1 + epsilon * h2
    slope = left / right
    bend = (left2 - right2 * slope**2) / right
    curvature = z * (g2 / g - bend / epsilon)  # z″, where z′ = 0
    weighted = (nodes.b / (1 + epsilon[:, None] * nodes.b) ** 2 * nodes.weights[1]).sum(1)
    c = np.abs(slope) / z * weighted * np.sqrt(2 / curvature)
    return z, (m * c) ** (-2 / 3)
