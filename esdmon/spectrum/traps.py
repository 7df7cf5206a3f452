"""Measure correlation traps: single elements, or a mean, that cause a spike even after the elements are shuffled.

A mean that is not zero is a perturbation of rank one and strength |mean|·√(NM); a single huge element w is one of
strength |w|. Each causes a spike if its strength exceeds (NM)^¼·σ. Neither depends on correlations of elements.

References: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025)
(https://arxiv.org/abs/2507.17912) name them; J. Baik, G. Ben Arous, S. Péché, Annals of Probability 33 (2005) 1643
(https://arxiv.org/abs/math/0403022) give the transition.
"""

from collections.abc import Callable

from esdmon.spectrum.elements import Elements, TrapElements
from esdmon.spectrum.spectrum import Spectrum


def trap(spectrum: Spectrum) -> float:
    """Return the larger of |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼: above 1 the shuffled matrix has a spike.

    It is NaN if all elements are equal, and if M = 1.
    """
    if spectrum.elements is None or spectrum.elements.variance <= 0 or spectrum.is_of_norms:
        return float("nan")
    return max(parts_of_trap(spectrum.elements, spectrum.n, spectrum.m))


def parts_of_trap(elements: Elements, n: int, m: int) -> tuple[float, float]:
    """Return |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼; both 0 if all elements are equal."""
    if elements.variance <= 0:
        return 0.0, 0.0
    sigma, root = elements.variance**0.5, (n * m) ** 0.25
    largest = max(elements.maximum - elements.mean, elements.mean - elements.minimum)
    return float(abs(elements.mean) / sigma * root), float(largest / sigma / root)


def is_trapped(spectrum: Spectrum) -> bool:
    """Return whether there is a trap whose elements are known."""
    return spectrum.elements is not None and spectrum.elements.trap is not None and not spectrum.is_of_norms


def trap_mean(spectrum: Spectrum) -> float:
    """Return mean/σ of the elements, with its sign: if |mean|/σ is above (NM)^−¼, the mean causes a trap."""
    elements = spectrum.elements
    return float("nan") if elements is None or elements.variance <= 0 else elements.mean / elements.variance**0.5


def trap_is_local(spectrum: Spectrum) -> float:
    """Return 1 if single elements cause the trap, 0 if the mean does: the larger part of `parts_of_trap`."""
    if spectrum.elements is None:
        return float("nan")
    by_mean, by_element = parts_of_trap(spectrum.elements, spectrum.n, spectrum.m)
    return float(by_element > by_mean)


def of_trap(field: str) -> Callable[[Spectrum], float]:
    """Return a measure that reads a field of `TrapElements`; NaN without a trap."""

    def compute(spectrum: Spectrum) -> float:
        found: TrapElements | None = None if spectrum.elements is None else spectrum.elements.trap
        return float("nan") if found is None else float(getattr(found, field))

    return compute


def trap_spikes(spectrum: Spectrum) -> float:
    """Return the number of spikes of the shuffled matrix: 0 unless there is a trap."""
    if spectrum.shuffled is None:
        return float("nan")
    shuffled = Spectrum.from_eigenvalues(spectrum.shuffled, shape=spectrum.shape)
    return float("nan") if shuffled.bulk is None else float(shuffled.bulk.n_spikes)
