"""Measure the localization of eigenvectors; eigenvectors of the bulk are spread evenly, as Gaussian vectors are.

Legend: v is a right singular vector (on the shorter side, M elements, ‖v‖₂ = 1). Measures are means over the vectors of
the bulk, or of the spikes.

Reference: C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165, §5; definitions as in its notebooks.
"""

import math
from collections.abc import Callable

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum

_BINS = 100  # of the histogram


def localization(vectors: Floats) -> Floats:
    """Return ‖v‖₁/‖v‖_∞ of each column: 1 for a single element, M for equal ones, 97.7 for Gaussian ones of M = 384."""
    size = np.abs(vectors)
    return size.sum(axis=0) / size.max(axis=0)


def participation(vectors: Floats) -> Floats:
    """Return ‖v‖₂/‖v‖₄ of each column: 1 for a single element, M^¼ for equal ones, (M/3)^¼ for Gaussian vectors."""
    return np.sum(vectors**2, axis=0) ** 0.5 / np.sum(vectors**4, axis=0) ** 0.25


def vector_entropy(vectors: Floats) -> Floats:
    """Return −Σ p ln p over a 100-bin histogram of each column: 4.11 nats for Gaussian vectors of M = 384."""
    entropies = []
    for v in vectors.T:
        p = np.histogram(v, bins=_BINS)[0] / v.size
        p = p[p > 0]
        entropies.append(float(-np.sum(p * np.log(p))))
    return np.array(entropies)


def participation_null(spectrum: Spectrum) -> float:
    """Return (M/3)^¼, the value for Gaussian vectors."""
    return float((spectrum.m / 3) ** 0.25)


def localization_null(spectrum: Spectrum) -> float:
    """Return M·√(2/π)/E max|g| over M standard normals, the value for Gaussian vectors."""
    t = np.linspace(0, 8, 1601)
    inside = np.array([math.erf(x / math.sqrt(2)) for x in t])
    largest = float(np.trapezoid(1 - inside**spectrum.m, t))
    return spectrum.m * math.sqrt(2 / math.pi) / largest


def mean_over(quantity: Callable[[Floats], Floats], spectrum: Spectrum, *, spikes: bool) -> float:
    """Return the mean of a quantity over the vectors of the spikes, or of the bulk; NaN if there is none."""
    bulk = spectrum.noise_bulk
    if spectrum.vectors is None or bulk is None:
        return float("nan")
    pooled = np.concatenate(
        [
            quantity(vectors[:, spectrum.m - count :] if spikes else vectors[:, : spectrum.m - count])
            for vectors, count in zip(spectrum.vectors, bulk.spikes, strict=True)
        ]
    )
    return float(pooled.mean()) if pooled.size else float("nan")
