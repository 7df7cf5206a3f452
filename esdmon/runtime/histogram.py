"""A spectrum as a histogram, for the record of a layer."""

import numpy as np

from esdmon.records import Esd
from esdmon.spectrum import Spectrum

_BINS = 64  # as many as a picture of 640 points can distinguish


def histogram(spectrum: Spectrum) -> Esd | None:
    """Return counts of log₁₀ λ in 64 bins between the smallest and largest nonzero λ; None where all are zero."""
    logarithms = np.log10(spectrum.nonzero)
    if not logarithms.size:
        return None
    counts, edges = np.histogram(logarithms, bins=_BINS)
    zeros = spectrum.eigenvalues.size - logarithms.size
    return Esd(float(edges[0]), float(edges[-1]), tuple(map(int, counts)), zeros)
