"""Measure correlation traps, which make a spike even after the elements of a matrix are shuffled.

A mean that is not zero is a perturbation of rank one of strength |mean|·√(NM); a single huge element w is one of
strength |w|. Either makes a spike where it exceeds (NM)^¼·σ. Both are properties of single elements, not of their
correlations.

References: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025)
(https://arxiv.org/abs/2507.17912) name them; J. Baik, G. Ben Arous, S. Péché, Annals of Probability 33 (2005) 1643
(https://arxiv.org/abs/math/0403022) give the transition.
"""

from collections.abc import Callable

from esdmon.spectrum.elements import Elements, TrapElements
from esdmon.spectrum.spectrum import Spectrum


def trap(spectrum: Spectrum) -> float:
    """Return the larger of |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼: above 1 the shuffled matrix has a spike.

    NaN where all elements are equal.
    """
    if spectrum.elements is None or spectrum.elements.variance <= 0:
        return float("nan")
    return max(parts_of_trap(spectrum.elements, spectrum.n, spectrum.m))


def parts_of_trap(elements: Elements, n: int, m: int) -> tuple[float, float]:
    """Return |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼; zeros for elements that are all equal."""
    if elements.variance <= 0:
        return 0.0, 0.0
    sigma, root = elements.variance**0.5, (n * m) ** 0.25
    largest = max(elements.maximum - elements.mean, elements.mean - elements.minimum)
    return float(abs(elements.mean) / sigma * root), float(largest / sigma / root)


def is_trapped(spectrum: Spectrum) -> bool:
    """Return whether there is a trap that was taken apart."""
    return spectrum.elements is not None and spectrum.elements.trap is not None


def trap_mean(spectrum: Spectrum) -> float:
    """Return mean/σ of the elements, with its sign: above (NM)^−¼ the trap is diffuse, in all elements alike."""
    elements = spectrum.elements
    return float("nan") if elements is None or elements.variance <= 0 else elements.mean / elements.variance**0.5


def trap_is_local(spectrum: Spectrum) -> float:
    """Return 1 where single elements make the trap, 0 where the mean does: where the larger of the two comes from."""
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
