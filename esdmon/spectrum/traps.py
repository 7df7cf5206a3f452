"""Measure correlation traps, which make a spike even after the elements of a matrix are shuffled.

A mean that is not zero is a perturbation of rank one of strength |mean|·√(NM); a single huge element w is one of
strength |w|. Either makes a spike where it exceeds (NM)^¼·σ. Both are properties of single elements, not of their
correlations.

References: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025)
(https://arxiv.org/abs/2507.17912) name them; J. Baik, G. Ben Arous, S. Péché, Annals of Probability 33 (2005) 1643
(https://arxiv.org/abs/math/0403022) give the transition.
"""

from esdmon.spectrum.spectrum import Spectrum


def trap(spectrum: Spectrum) -> float:
    """Return the larger of |mean|/σ·(NM)^¼ and max|w − mean|/σ/(NM)^¼: above 1 the shuffled matrix has a spike."""
    elements = spectrum.elements
    if elements is None or elements.variance <= 0:
        return float("nan")
    sigma, root = elements.variance**0.5, (spectrum.n * spectrum.m) ** 0.25
    largest = max(elements.maximum - elements.mean, elements.mean - elements.minimum)
    return float(max(abs(elements.mean) / sigma * root, largest / sigma / root))


def trap_spikes(spectrum: Spectrum) -> float:
    """Return the number of spikes of the shuffled matrix: 0 unless there is a trap."""
    if spectrum.shuffled is None:
        return float("nan")
    shuffled = Spectrum.from_eigenvalues(spectrum.shuffled, shape=spectrum.shape)
    return float("nan") if shuffled.bulk is None else float(shuffled.bulk.n_spikes)
