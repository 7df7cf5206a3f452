"""Fit the random bulk of a spectrum: its variance σ², its edge λ⁺, and the spikes above it.

Legend: λ are the eigenvalues of X = WᵀW/N, M to a slice; Q = N/M; k counts the eigenvalues above the cut.

A layer of noise plus structure has a Marchenko-Pastur bulk and outliers ("spikes"). σ² is found from the middle of the
spectrum, which spikes do not reach; the cut is a Tracy-Widom quantile above the edge; both are repeated until k stays.

Convolutions pool the spectra of their kernel positions. Pooled slices of different variance do not follow a
Marchenko-Pastur law even where each slice does, so each is divided by its own σ² first, and the false-alarm level is
split among them.
"""

from dataclasses import dataclass

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import TRACY_WIDOM_QUANTILES, johnstone_centre, johnstone_scale
from esdmon.spectrum.marchenko1967 import mp_cdf, mp_edges, mp_quantile

# One false spike in a thousand matrices of Gaussian noise. Our choice.
_SPIKE_QUANTILE = TRACY_WIDOM_QUANTILES[0.999]
# Elements with heavier tails than Gaussian move the largest eigenvalue of small matrices: with this term the false
# alarms on Laplacian elements fall from 8 % to below 0.5 % at 64 × 64; at 4096 × 384 it changes nothing. Our measure.
_SMALL_SAMPLE = 250.0
# The quantiles of the bulk that σ² is read from: above the hard edge of square matrices, below any spike. Our choice.
_SIGMA_QUANTILES = (0.1, 0.6)
_SIGMA_POINTS = 128  # at least, of those quantiles: neighbours repel each other, so more of them add no information
_MAX_ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class Bulk:
    """The Marchenko-Pastur part of a spectrum, in units of X = WᵀW/N."""

    sigma2: float
    """σ², the variance of the elements that would make this bulk; the mean over slices."""
    edge: float
    """λ⁺ = σ²(1 + 1/√Q)²; for slices the edge of the one that reaches highest."""
    cut: float
    """The spikes lie above (μ + c·s)/N of Johnstone (2001), in units of σ² = 1 (see `standardised`)."""
    spikes: tuple[int, ...]
    """Number of eigenvalues above the cut, for each slice."""
    soft_rank: float
    """min(1, λ⁺/λmax), each slice in units of its own σ²."""
    ks: float
    """KS·M: the Kolmogorov-Smirnov distance of the bulk from the law, times M. It is below 6 for noise: eigenvalues are
    rigid, so it is of the order of 1 and not of √M. Kolmogorov's p-values do not apply."""
    standardised: Floats
    """All λ/σ², each slice by its own, ascending."""

    @property
    def n_spikes(self) -> int:
        """Return k, the number of eigenvalues above the cut over all slices."""
        return sum(self.spikes)


def fit_bulk(by_slice: Floats, n: int, *, floor: float = 0.0) -> Bulk:
    """Fit the bulk: σ² = median over p of λ_(p)/q_MP(p), p in [0.1, 0.6], without the k spikes.

    Args:
        by_slice: (slices, M) eigenvalues of X = WᵀW/N, ascending along the last axis.
        n: N, the longer side of a slice.
        floor: eigenvalue up to which one counts as 0.

    Raises:
        ValueError: if the σ² of a slice is not above the floor, as when about half of its eigenvalues are 0.
    """
    slices, m = by_slice.shape
    q = n / m
    cut = spike_cut(n, m, slices)
    fits = [_fit_slice(row, q, cut) for row in by_slice]
    sigma2 = np.array([s for s, _ in fits])
    if not np.all(sigma2 > floor):
        msg = f"no bulk: σ² = {sigma2.min():g} in slice {int(np.argmin(sigma2))} of {slices}"
        raise ValueError(msg)
    standardised = np.sort((by_slice / sigma2[:, None]).ravel())
    spikes = tuple(k for _, k in fits)
    edge = mp_edges(q)[1]
    return Bulk(
        sigma2=float(sigma2.mean()),
        edge=float(sigma2.max() * edge),
        cut=cut,
        spikes=spikes,
        soft_rank=min(1.0, edge / float(standardised[-1])),
        ks=_ks_times_m(standardised, sum(spikes), q, m),
        standardised=standardised,
    )


def spike_cut(n: int, m: int, slices: int = 1) -> float:
    """Return (μ + c·s)/N with c = 3.27 + 250/√(NM), which noise exceeds once in a thousand matrices (σ² = 1).

    With k slices the level is .001/k², so that pooling does not multiply the false alarms. The tail of TW₁ falls as
    exp(−⅔·x^1.5), which gives the quantile of that level.
    """
    quantile = (_SPIKE_QUANTILE**1.5 + 1.5 * 2 * np.log(slices)) ** (2 / 3)
    c = quantile + _SMALL_SAMPLE / (n * m) ** 0.5
    return float(johnstone_centre(n, m) + c * johnstone_scale(n, m))


def spike_reach(by_slice: Floats, n: int, spikes: tuple[int, ...]) -> float:
    """Return (λmax − λ⁺)/(cut − λ⁺), in units of σ², of the slice with the largest: above 1 there is a spike.

    It is the lower of two values, by the σ² of the bulk with and without its largest eigenvalue: the search for spikes
    starts from the first and must agree with the second. So it does not jump where k does.
    """
    slices, m = by_slice.shape
    edge, cut = mp_edges(n / m)[1], spike_cut(n, m, slices)
    reach = -np.inf
    for lam, k in zip(by_slice, spikes, strict=True):
        without = max(k, 1)
        sigma2 = max(_sigma2(lam, m, n / m), _sigma2(lam[: m - without], m - without, n / m))
        reach = max(reach, (float(lam[-1]) / sigma2 - edge) / (cut - edge))
    return float(reach)


def _fit_slice(lam: Floats, q: float, cut: float) -> tuple[float, int]:
    """Return (σ², k) of one ascending slice."""
    m = lam.size
    k, sigma2 = 0, 0.0
    for _ in range(_MAX_ITERATIONS):
        sigma2 = _sigma2(lam[: m - k], m - k, q)
        # At most half of a spectrum can be outliers of the other half.
        found = min(int(m - np.searchsorted(lam, sigma2 * cut, side="right")), m // 2)
        if found == k:
            break
        k = found
    return sigma2, k


def _sigma2(bulk: Floats, total: int, q: float) -> float:
    """Return the median of λ_(p)/q_MP(p) over the middle of the bulk, the lowest of `total` eigenvalues."""
    low, high = (min(int(p * total), bulk.size - 1) for p in _SIGMA_QUANTILES)
    place = np.arange(low, high + 1, max(1, (high - low) // _SIGMA_POINTS))
    return float(np.median(bulk[place] / mp_quantile((place + 0.5) / total, q)))


def _ks_times_m(standardised: Floats, k: int, q: float, m: int) -> float:
    """Return M·max |ECDF − MP CDF|, two-sided, of the eigenvalues below the k spikes: the smaller of two.

    Either the spikes were added to noise, and a perturbation of low rank does not change the law of the others; or they
    were pulled out of its upper end, and the others are the lowest of a larger sample.
    """
    bulk = standardised[: standardised.size - k]
    return m * min(_distance(bulk, total, q) for total in {bulk.size, standardised.size})


def _distance(bulk: Floats, total: int, q: float) -> float:
    """Return the KS distance of the lowest of `total` eigenvalues from the law, with the σ² that fits them."""
    if bulk.size == 0:
        return 1.0
    sigma2 = _sigma2(bulk, total, q)
    if sigma2 <= 0:
        return 1.0
    cdf = mp_cdf(bulk / sigma2, q)
    steps = np.arange(bulk.size + 1) / total
    return max(float(np.max(steps[1:] - cdf)), float(np.max(cdf - steps[:-1])))
