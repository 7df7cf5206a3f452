"""Reuse the laws of noise of one weight from reading to reading, while its scales hardly move."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.laws import NoiseLaw
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import edge_weights, separable_laws

Laws = Callable[[Profile], tuple[NoiseLaw, ...]]
"""Computes the law of noise of each slice of a profile."""

_KEPT = 3  # profiles: a fit computes the laws of up to three
_NEAR = 0.1  # of the Tracy-Widom scale, by which λ⁺ may have moved; our choice
_MOST = 10.0  # times what λ⁺ may have moved, relatively, by which a single scale may have; our choice
_SHIFT = 0.6  # mean move of the scales times M: of the order of KS·M of the bulk, which is below 6; our choice


class _Known(NamedTuple):
    sides: tuple[Floats, Floats]
    """Scales of rows and columns."""
    weights: tuple[Floats, Floats]
    """∂log λ⁺/∂log of each scale."""
    laws: tuple[NoiseLaw, ...]
    tolerance: float
    """Relative change of λ⁺ up to which the laws are reused."""

    def is_near(self, sides: tuple[Floats, Floats]) -> bool:
        """Return whether λ⁺ has moved by less than the tolerance, to first order, and the other scales by little."""
        if any(now.shape != then.shape for now, then in zip(sides, self.sides, strict=True)):
            return False
        moved = [now - then for now, then in zip(sides, self.sides, strict=True)]
        terms = zip(self.weights, moved, self.sides, strict=True)
        edge = sum((weights * by / then).sum(axis=1) for weights, by, then in terms)
        return bool(np.all(np.abs(edge) <= self.tolerance)) and all(map(self._is_little, moved, self.sides))

    def _is_little(self, moved: Floats, then: Floats) -> bool:
        size, most = np.abs(moved), max(self.tolerance, _SHIFT / self.sides[1].shape[1])
        return bool(np.all(size.mean(axis=1) <= most) and np.all(size <= _MOST * self.tolerance * np.maximum(then, 1)))


class RecentLaws:
    """Compute the laws of noise of the profiles of one weight, or return those of a recent profile that is near.

    To first order log λ⁺ moves by Σ w·d(log a), where the weights w of a side have a sum of 1, so a returned λ⁺ is
    within about a tenth of the Tracy-Widom scale of the exact one.
    """

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def __call__(self, profile: Profile) -> tuple[NoiseLaw, ...]:
        """Return the law of each slice."""
        sides = profile.rows, profile.columns
        for known in self._known:
            if known.is_near(sides):
                return known.laws
        laws = separable_laws(profile)
        tolerance = _NEAR * min(law.scale / law.edge for law in laws)
        self._known = [_Known(sides, edge_weights(profile, laws), laws, tolerance), *self._known][:_KEPT]
        return laws
