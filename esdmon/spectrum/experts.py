"""Measure the weakest and the strongest of several pooled experts, which the pooled spectrum does not show."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from esdmon.spectrum.spectrum import Spectrum

Quantity = Callable[[Spectrum], float]


def are_experts(spectrum: Spectrum) -> bool:
    """Return whether several experts are pooled."""
    return spectrum.kind == "experts" and spectrum.slices > 1


def over_experts(quantity: Quantity, choose: Callable[[Iterable[float]], float]) -> Quantity:
    """Return a measure: the smallest or largest value of a quantity over the experts; NaN if it is undefined for all.

    Args:
        quantity: computes a number of one expert.
        choose: `min` or `max`.
    """

    def compute(spectrum: Spectrum) -> float:
        one_by_one = (replace(spectrum, by_slice=lam[None], scales=None) for lam in spectrum.by_slice)
        values = [value for value in map(quantity, one_by_one) if np.isfinite(value)]
        return float(choose(values)) if values else float("nan")

    return compute
