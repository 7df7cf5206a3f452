"""Correlation traps: what makes a spike even in a matrix whose elements have been shuffled.

A mean that is not zero is a perturbation of rank one of strength |mean|·√(NM); a single huge element w is one of
strength |w|. Either makes a spike where it exceeds (NM)^¼·σ, the transition of Baik, Ben Arous, Péché (2005). Both are
properties of the elements and not of what they say together. Martin & Hinrichs, "SETOL" (2025) call them traps.
"""

from esdmon.spectrum.spectrum import Spectrum


def trap(spectrum: Spectrum) -> float:
    """The larger of |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼: above 1 the shuffled matrix has a spike."""
    elements = spectrum.elements
    if elements is None or elements.variance <= 0:
        return float("nan")
    sigma, root = elements.variance**0.5, (spectrum.n * spectrum.m) ** 0.25
    largest = max(elements.maximum - elements.mean, elements.mean - elements.minimum)
    return float(max(abs(elements.mean) / sigma * root, largest / sigma / root))


def trap_spikes(spectrum: Spectrum) -> float:
    """Eigenvalues of the shuffled matrix above the cut for noise: 0 unless there is a trap."""
    if spectrum.shuffled is None:
        return float("nan")
    shuffled = Spectrum.from_eigenvalues(spectrum.shuffled, shape=spectrum.shape)
    return float("nan") if shuffled.bulk is None else float(shuffled.bulk.n_spikes)
