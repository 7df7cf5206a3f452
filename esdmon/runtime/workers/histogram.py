"""Compute the histogram of a spectrum, for the record of a layer."""

import numpy as np

from esdmon.records import Esd
from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats

_BINS = 64  # as many as are visible in a picture of 640 pixels
_TOP = 16  # largest eigenvalues that are stored singly: more than the spikes of most layers. Our choice


def histogram(spectrum: Spectrum) -> Esd | None:
    """Return counts of log₁₀ λ in 64 bins between the smallest and largest nonzero λ; None if all are zero."""
    nonzero = spectrum.nonzero
    logarithms = np.log10(nonzero)
    if not logarithms.size:
        return None
    edges = _edges(float(logarithms[0]), float(logarithms[-1]))
    # λ is sorted, so borders are found by bisection; the last bin includes its upper border.
    below = np.searchsorted(logarithms, edges)
    below[-1] = logarithms.size
    zeros = spectrum.eigenvalues.size - logarithms.size
    return Esd(
        float(edges[0]),
        float(edges[-1]),
        tuple(np.diff(below).tolist()),
        zeros=zeros,
        noise=_noise(spectrum, 10**edges),
        top=tuple(nonzero[: -_TOP - 1 : -1].tolist()),
    )


def _edges(low: float, high: float) -> Floats:
    """Return the borders of the bins; if there is only one value, they span 1 in log₁₀ λ."""
    return np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, high + 0.5, _BINS + 1)


def _noise(spectrum: Spectrum, borders: Floats) -> tuple[float, ...]:
    """Return the expected counts of the bulk's noise between borders, if its law has unequal scales."""
    bulk = spectrum.noise_bulk
    if bulk is None or not bulk.is_scaled:
        return ()
    slices = zip(bulk.laws, bulk.sigma2_by_slice, bulk.spikes, strict=True)
    expected = sum((spectrum.m - k) * np.diff(law.cdf(borders / sigma2)) for law, sigma2, k in slices)
    return tuple(map(float, np.asarray(expected)))
