"""Fit the random bulk of a spectrum: its variance σ², its edge λ⁺, and the spikes above it.

Legend: λ are the eigenvalues of X = WᵀW/N, M for each slice; Q = N/M; k counts the eigenvalues above the cut; KS·M is
the Kolmogorov-Smirnov distance of the bulk from a law of noise, times M.

A layer of noise plus structure has a bulk with the law of noise, and outliers ("spikes"). σ² is estimated from the
middle of the spectrum, which spikes do not reach. The cut is a Tracy-Widom quantile above the edge. Both steps are
repeated until k no longer changes.

Noise with rows and columns of different scales does not have the Marchenko-Pastur law, so where that does not explain
the whole spectrum, and the scales are known, the bulk is fitted with the law of noise of these scales as well. Spikes
and single large rows distort the measured scales. If neither law fits, scales corrected for them are tried, and, if
they are known, the scales without the strongest directions.

Convolutions pool the spectra of their kernel positions. Each slice has its own σ² and its own law, and the false-alarm
level is split among them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import TRACY_WIDOM_QUANTILES
from esdmon.spectrum.laws import NoiseLaw, marchenko_pastur
from esdmon.spectrum.recent_laws import Laws
from esdmon.spectrum.scales import Profile, Scales

CLEAN_KS = 6.0
"""KS·M up to which a bulk has the law of noise: 99 % of draws of noise are below 4.5. Our choice."""
MAX_SPIKE_SHARE = 0.35
"""k/M above which there is no bulk of noise: the paper's tables have at most 13 % above the edge. Our choice."""
MAX_BULK_KS = 0.2
"""KS distance above which, if KS·M is above 6, there is no bulk of noise. Set on labelled layers of published
networks, where a bulk is still visible in plots with .10 to .15."""
# One false spike in a thousand matrices of Gaussian noise. Our choice.
_SPIKE_QUANTILE = TRACY_WIDOM_QUANTILES[0.999]
# Elements with heavier tails than Gaussian move the largest eigenvalue of small matrices: with this term the false
# alarms on Laplacian elements fall from 8 % to below 0.5 % at 64 × 64; at 4096 × 384 it changes nothing. Our measure.
_SMALL_SAMPLE = 250.0
# The quantiles of the bulk that σ² is read from: above the hard edge of square matrices, below any spike. Our choice.
_SIGMA_QUANTILES = (0.1, 0.6)
_SIGMA_POINTS = 128  # at least, of those quantiles: neighbours repel each other, so more of them add no information
_NEAR = 0.05  # KS distance up to which a law without spikes is close to a spectrum; our choice
_MAX_ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class Bulk:
    """The part of a spectrum that has the law of noise, in units of X = WᵀW/N."""

    sigma2: float
    """σ², the variance of the noise elements; the mean over slices."""
    edge: float
    """Largest λ⁺ of the slices; for equal scales of rows and columns λ⁺ = σ²(1 + 1/√Q)²."""
    spikes: tuple[int, ...]
    """Number of eigenvalues above the cut, for each slice."""
    soft_rank: float
    """min(1, λ⁺/λmax), each slice in units of its own σ²."""
    ks: float
    """KS·M. It is below 6 for noise: eigenvalues repel each other, so it is of the order of 1 and not of √M.
    Kolmogorov's p-values do not apply."""
    standardised: Floats
    """All λ/λ⁺, each slice with its own λ⁺, ascending: 1 is at the edge."""
    laws: tuple[NoiseLaw, ...]
    """The law of noise of each slice."""
    is_scaled: bool = False
    """True if the bulk was fitted with the law of noise with different scales of rows and columns."""
    is_capped: bool = False
    """True if the fit of a slice stopped with half of its eigenvalues above the cut."""
    sigma2_by_slice: tuple[float, ...] = ()

    @property
    def n_spikes(self) -> int:
        """Return k, the number of eigenvalues above the cut over all slices."""
        return sum(self.spikes)

    @property
    def m(self) -> int:
        """Return M, the number of eigenvalues of a slice."""
        return self.standardised.size // len(self.spikes)

    @property
    def spike_share(self) -> float:
        """Return k/M; of the slice with the most spikes if its fit stopped at its limit of a half."""
        return max(self.spikes) / self.m if self.is_capped else self.n_spikes / self.standardised.size

    def n_beside(self, times: float) -> int:
        """Return the number of spikes that lie below this many times λ⁺."""
        return int(np.sum(self.standardised[self.standardised.size - self.n_spikes :] < times))

    @property
    def is_found(self) -> bool:
        """Return whether the law of noise fits the bulk, so that σ², edge and spikes are meaningful."""
        return self.spike_share <= MAX_SPIKE_SHARE and self.ks <= largest_bulk_ks(self.m)


@explain_wrong_calls
def fit_bulk(by_slice: Floats, n: int, *, floor: float = 0.0) -> Bulk:
    """Fit the bulk: σ² = median over p of λ_(p)/q(p), p in [0.1, 0.6], without the k spikes; q: quantiles of the law.

    Args:
        by_slice: (slices, M) eigenvalues of X = WᵀW/N, ascending along the last axis. Fewer than about 8 eigenvalues
            per slice give unreliable quantiles.
        n: N, the longer side of a slice.
        floor: largest eigenvalue that counts as 0.

    Raises:
        ValueError: if the array is not (slices, M) with N >= M >= 2, or if the σ² of a slice is not above the floor, as
            when about half of its eigenvalues are 0.
    """
    if by_slice.ndim != 2 or not n >= by_slice.shape[1] >= 2:
        msg = f"by_slice must be (slices, M) with N >= M >= 2; got an array of shape {by_slice.shape} and N = {n}"
        raise ValueError(msg)
    slices, m = by_slice.shape
    return _fit(by_slice, n, (marchenko_pastur(n, m),) * slices, floor)


def largest_bulk_ks(m: int, *, clean_ks: float = CLEAN_KS, max_ks: float = MAX_BULK_KS) -> float:
    """Return KS·M above which there is no bulk of noise: M·`max_ks`, but at least the limit of a clean bulk."""
    return max(clean_ks, max_ks * m)


def is_noise(fit: Bulk) -> bool:
    """Return whether a fit explains the whole spectrum, so that no other law has to be tried."""
    return fit.n_spikes == 0 and fit.ks <= CLEAN_KS


def fit_scaled(
    plain: Bulk | None, by_slice: Floats, n: int, scales: Scales, laws: Laws, *, rest: Scales | None = None
) -> Bulk | None:
    """Return the first fit whose bulk is that of noise; if none is, the one that comes closest.

    A fit whose edge is above the whole spectrum, although the spectrum is far from its law, explains nothing: large
    rows or elements have moved the edge. It is used only if no other fit has a bulk either. Clipped scales are used
    only if they give a bulk of noise, since scales that differ much produce a tail.

    Args:
        plain: the fit with the law of equal scales; None if it has no bulk. Then the fit with the measured scales is
            returned if it has one, else None.
        by_slice: as in `fit_bulk`.
        n: N, the longer side of a slice.
        scales: the scales of the rows and columns.
        laws: computes the laws of noise of a profile.
        rest: the scales without the strongest directions; None if they are not known.
    """
    measured = scales.profile()
    if plain is None:
        return _fit_without_plain(by_slice, n, measured, laws)

    def fit_with(profile: Profile) -> Bulk:
        return plain if profile.is_flat else _fit(by_slice, n, laws(profile), 0.0, is_scaled=True)

    fits = [fit_with(measured), plain]
    if not any(map(is_clean, fits)):
        shares = _squared_shares(by_slice, min(fits, key=lambda fit: fit.n_spikes).spikes)
        corrected = scales.profile(spikes=shares)
        if corrected.differs_from(measured):
            fits.append(fit_with(corrected))
        if rest is not None:
            fits.append(fit_with(rest.profile()))
    for fit in fits:
        if is_clean(fit):
            return fit
    if fits[0].n_spikes == 0 and (clipped := scales.profile(clipped=True)).differs_from(measured):
        last = fit_with(clipped)
        if is_clean(last):
            return last
    near = _NEAR * by_slice.shape[1]
    explaining = [fit for fit in fits if fit.is_found and (fit.n_spikes or fit.ks <= near)]
    return min(explaining or fits, key=_misfit)


def _fit_without_plain(by_slice: Floats, n: int, profile: Profile, laws: Laws) -> Bulk | None:
    if profile.is_flat or not np.all(by_slice[:, 0] > 0):
        return None
    fit = _fit(by_slice, n, laws(profile), 0.0, is_scaled=True)
    return fit if fit.is_found and not fit.n_spikes else None


def is_clean(fit: Bulk) -> bool:
    """Return whether a fit explains all of a spectrum but its spikes."""
    return fit.ks <= CLEAN_KS and fit.is_found


def _misfit(fit: Bulk) -> float:
    """Return the share of a spectrum that a fit does not explain: k/M plus the KS distance of the rest."""
    return float((fit.n_spikes + fit.ks * len(fit.spikes)) / fit.standardised.size)


def _squared_shares(by_slice: Floats, spikes: Sequence[int]) -> Floats:
    """Return Σ p² over the spikes of each slice, p = λ/Σλ."""
    m = by_slice.shape[1]
    return np.array([float(np.sum((lam[m - k :] / lam.sum()) ** 2)) for lam, k in zip(by_slice, spikes, strict=True)])


def _fit(by_slice: Floats, n: int, laws: tuple[NoiseLaw, ...], floor: float, *, is_scaled: bool = False) -> Bulk:
    slices, m = by_slice.shape
    level = _level(n, m, slices)
    fits = [_fit_slice(lam, law, level) for lam, law in zip(by_slice, laws, strict=True)]
    sigma2, spikes = np.array([s for s, _ in fits]), tuple(k for _, k in fits)
    if not np.all(sigma2 > floor):
        msg = f"no bulk: σ² = {sigma2.min():g} in slice {int(np.argmin(sigma2))} of {slices}"
        raise ValueError(msg)
    edges = sigma2 * np.array([law.edge for law in laws])
    standardised = np.sort((by_slice / edges[:, None]).ravel())
    return Bulk(
        sigma2=float(sigma2.mean()),
        edge=float(edges.max()),
        spikes=spikes,
        soft_rank=min(1.0, 1 / float(standardised[-1])),
        ks=_ks_times_m(by_slice, sigma2, spikes, laws),
        standardised=standardised,
        laws=laws,
        is_scaled=is_scaled,
        is_capped=max(spikes) >= m // 2,
        sigma2_by_slice=tuple(map(float, sigma2)),
    )


def _level(n: int, m: int, slices: int) -> float:
    """Return c of the cut μ + c·s, 3.27 + 250/√(NM), which the λmax of noise exceeds in one of a thousand matrices.

    With k slices the level is .001/k², so that pooling does not multiply the false alarms. The tail of TW₁ falls as
    exp(−⅔·x^1.5), which gives the quantile of that level.
    """
    quantile = (_SPIKE_QUANTILE**1.5 + 1.5 * 2 * np.log(slices)) ** (2 / 3)
    return float(quantile + _SMALL_SAMPLE / (n * m) ** 0.5)


def spike_reach(by_slice: Floats, n: int, bulk: Bulk) -> float:
    """Return (λmax − λ⁺)/(cut − λ⁺), in units of σ²; the largest over the slices. Above 1 there is a spike.

    It is the smaller of two values, computed with the σ² of the bulk with and without its largest eigenvalue: the
    search for spikes starts from the first σ², and its result must agree with the second. So the value does not jump
    when k changes.
    """
    slices, m = by_slice.shape
    level = _level(n, m, slices)
    reach = -np.inf
    for lam, law, k, found in zip(by_slice, bulk.laws, bulk.spikes, bulk.sigma2_by_slice, strict=True):
        sigma2 = max(found, _sigma2(lam, m, law) if k else _sigma2(lam[: m - 1], m - 1, law))
        cut = law.centre + level * law.scale
        reach = max(reach, (float(lam[-1]) / sigma2 - law.edge) / (cut - law.edge))
    return float(reach)


def _fit_slice(lam: Floats, law: NoiseLaw, level: float) -> tuple[float, int]:
    """Return (σ², k) of one ascending slice."""
    m = lam.size
    cut = law.centre + level * law.scale
    k, sigma2 = 0, 0.0
    for _ in range(_MAX_ITERATIONS):
        sigma2 = _sigma2(lam[: m - k], m - k, law)
        # At most half of a spectrum can be outliers of the other half.
        found = min(int(m - np.searchsorted(lam, sigma2 * cut, side="right")), m // 2)
        if found == k:
            break
        k = found
    return sigma2, k


def _sigma2(bulk: Floats, total: int, law: NoiseLaw) -> float:
    """Return the median of λ_(p)/q(p) over the middle of the bulk, the lowest of `total` eigenvalues."""
    place, quantiles = _middle(law, bulk.size, total)
    ratios = np.sort(bulk[place] / quantiles)
    return float(ratios[(ratios.size - 1) // 2] + ratios[ratios.size // 2]) / 2


@lru_cache(maxsize=1024)  # for about fifty weights, and each k during their fits: 6 MB with the laws
def _middle(law: NoiseLaw, size: int, total: int) -> tuple[slice, Floats]:
    """Return which of `size` ascending eigenvalues lie in the middle of `total`, and their quantiles."""
    low, high = (min(int(p * total), size - 1) for p in _SIGMA_QUANTILES)
    step = max(1, (high - low) // _SIGMA_POINTS)
    return slice(low, high + 1, step), law.quantile((np.arange(low, high + 1, step) + 0.5) / total)


def _ks_times_m(by_slice: Floats, sigma2: Floats, spikes: Sequence[int], laws: Sequence[NoiseLaw]) -> float:
    """Return M·max |ECDF − CDF|, two-sided, of the eigenvalues below the k spikes: the smaller of two values.

    There are two models of spikes. Either they were added to noise: a perturbation of low rank does not change the law
    of the others. Or they were the largest eigenvalues of the noise: then the others are the lowest of a larger sample.
    """
    m: int = by_slice.shape[1]
    bulks = [lam[: m - k] for lam, k in zip(by_slice, spikes, strict=True)]
    distance = _distance(bulks, sigma2, laws, sum(bulk.size for bulk in bulks))
    if sum(spikes):
        pulled = [_sigma2(bulk, m, law) for bulk, law in zip(bulks, laws, strict=True)]
        distance = min(distance, _distance(bulks, pulled, laws, by_slice.size))
    return m * distance


def _distance(bulks: Sequence[Floats], sigma2: Iterable[float], laws: Sequence[NoiseLaw], total: int) -> float:
    """Return the KS distance of pooled bulks, the lowest of `total` eigenvalues."""
    parts = [bulk / scale for bulk, scale in zip(bulks, sigma2, strict=True)]
    if all(law is laws[0] for law in laws):
        cdf = laws[0].cdf(np.sort(np.concatenate(parts)))
    else:
        cdf = np.sort(np.concatenate([law.cdf(part) for law, part in zip(laws, parts, strict=True)]))
    steps = np.arange(cdf.size + 1) / total
    return max(float(np.max(steps[1:] - cdf)), float(np.max(cdf - steps[:-1])))
