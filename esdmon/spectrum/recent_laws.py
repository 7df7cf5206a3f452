"""Cache the laws of noise of one weight between readings, as long as its scales hardly change."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.laws import NoiseLaw
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import SeparableLaw, edge_weights, separable_laws

Laws = Callable[[Profile], tuple[NoiseLaw, ...]]
"""Computes the law of noise of each slice of a profile."""

_MAX_PROFILES = 3  # profiles: a fit computes the laws of up to three
_TINY = 1e-300  # a scale may underflow
_NEAR = 0.1  # largest change of λ⁺, in units of the Tracy-Widom scale; our choice
_MAX_SINGLE_CHANGE = 10.0  # largest relative change of a single scale, as a multiple of that of λ⁺; our choice
_SHIFT = 1.2  # largest M times mean relative change of scales; KS·M, 6 for a clean bulk, changes by half as much


class _Known(NamedTuple):
    profile: Profile
    laws: tuple[SeparableLaw, ...]
    tolerance: float
    """Relative change of λ⁺ up to which the laws are reused."""

    def is_near(self, profile: Profile) -> bool:
        """Return whether λ⁺ has changed by less than the tolerance, to first order, and no scale by much."""
        sides = ((profile.rows, self.profile.rows), (profile.columns, self.profile.columns))
        if any(now.shape != then.shape for now, then in sides):
            return False
        moved = [(now - then) / np.maximum(then, _TINY) for now, then in sides]  # relative
        if not all(self._is_little(by, then) for by, (_, then) in zip(moved, sides, strict=True)):
            return False
        weights = edge_weights(self.profile, self.laws)
        edge = sum((of * by).sum(axis=1) for of, by in zip(weights, moved, strict=True))
        return bool(np.all(np.abs(edge) <= self.tolerance))

    def _is_little(self, moved: Floats, then: Floats) -> bool:
        size, most = np.abs(moved), max(self.tolerance, _SHIFT / self.profile.columns.shape[1])
        return bool(
            np.all(size.mean(axis=1) <= most)
            and np.all(size * np.minimum(then, 1) <= _MAX_SINGLE_CHANGE * self.tolerance)
        )


class RecentLaws:
    """Compute the laws of noise of a weight's profiles, or return the cached laws of a similar recent profile.

    To first order log λ⁺ changes by Σ w·d(log a), where the weights w of a side sum to 1. So the error of a cached λ⁺
    is at most about a tenth of the Tracy-Widom scale.
    """

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def __call__(self, profile: Profile) -> tuple[NoiseLaw, ...]:
        """Return the law of each slice."""
        for known in self._known:
            if known.is_near(profile):
                return known.laws
        laws = separable_laws(profile)
        tolerance = _NEAR * min(law.scale / law.edge for law in laws)
        self._known = [_Known(profile, laws, tolerance), *self._known][:_MAX_PROFILES]
        return laws
