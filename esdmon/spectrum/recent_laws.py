"""Reuse the laws of noise of one weight from reading to reading, while its scales hardly move."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.laws import NoiseLaw
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import separable_laws

Laws = Callable[[Profile], tuple[NoiseLaw, ...]]
"""Computes the law of noise of each slice of a profile."""

_KEPT = 3  # profiles: a fit computes the laws of up to three
_NEAR = 0.1  # of the Tracy-Widom scale, by which λ⁺ may have moved; our choice


class _Known(NamedTuple):
    sides: tuple[Floats, Floats]
    """Scales of rows and columns."""
    laws: tuple[NoiseLaw, ...]
    tolerance: float
    """Relative change of a scale up to which the laws are reused."""

    def is_near(self, sides: tuple[Floats, Floats]) -> bool:
        """Return whether each scale has moved by less than the tolerance, relative to it or to the mean scale of 1."""
        return all(
            a.shape == b.shape and bool(np.all(np.abs(a - b) <= self.tolerance * np.maximum(b, 1)))
            for a, b in zip(sides, self.sides, strict=True)
        )


class RecentLaws:
    """Compute the laws of noise of the profiles of one weight, or return those of a recent profile that is near.

    Where all scales move by a factor, λ⁺ moves by less than it, so a returned λ⁺ is within a tenth of the Tracy-Widom
    scale of the exact one.
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
        self._known = [_Known(sides, laws, tolerance), *self._known][:_KEPT]
        return laws
