"""Estimate the scales of the rows and columns of a matrix: the variance profile of its noise.

Legend: the elements of a slice are W_ij = √(a_i·b_j)·g_ij, i <= N, j <= M, with independent g of variance σ². The
profile is (a, b), each of mean 1. The measured scales scatter even where all are equal, by (κ − 1)/M and (κ − 1)/N in
their logarithm, where κ is the kurtosis of g; spikes scatter them too.
The logarithms are contracted towards their mean until only the variance above that is left (shrinkage, in the sense of
James and Stein), so that noise of equal scales has the Marchenko-Pastur law; single logarithms far beyond the scatter
are not contracted.

If only a share p of the elements is not zero, as under a random mask, κ is κ₁/p, where κ₁ is the kurtosis of the
elements that are not zero. Then the scatter of the scales widens the spectrum: tr (WᵀW)² contains Σ W_ij⁴ once. The law
of a profile contains the remaining scatter twice, in rows and in columns. So half of the scatter that the zeros add,
κ₁·(1/p − 1)/M and κ₁·(1/p − 1)/N, is removed on each side; then the second moments of spectrum and law agree.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from esdmon.spectrum.arrays import Floats

# Trained layers have a median kurtosis of 5.8, and some have hundreds, for which mean squares are unreliable. Above
# this value mean magnitudes are used to test whether rows and columns differ at all. Our choice.
HEAVY_KURTOSIS = 9.0
_KURTOSIS = (1.5, HEAVY_KURTOSIS)
_MIN_SHARE = 0.05  # share of the variance above which scales differ at all; our choice
_CERTAIN = 4.0  # standard deviations of the scatter beyond which a single scale is not contracted; our choice
_OUTLIER = 3.5  # median absolute deviations, rescaled to a standard deviation; our choice
_DIFFERENT = 0.1  # relative difference of spreads; our choice
_MAD = 1.4826  # standard deviations in a median absolute deviation of a normal distribution


@dataclass(frozen=True, slots=True)
class Profile:
    """The scales (a, b) of each slice, of mean 1, ascending: no law depends on their order."""

    rows: Floats
    """(slices, N) a_i."""
    columns: Floats
    """(slices, M) b_j."""

    @property
    def is_flat(self) -> bool:
        """Return whether all scales are equal, so that noise has the Marchenko-Pastur law."""
        return bool(np.ptp(self.rows) == 0 and np.ptp(self.columns) == 0)

    def differs_from(self, other: "Profile") -> bool:
        """Return whether the spread of a side differs by a tenth or more, so that another law is worth computing."""
        sides = ((self.rows, other.rows), (self.columns, other.columns))
        return any(bool(np.any(np.abs(_spread(a) - _spread(b)) > _DIFFERENT * _spread(b))) for a, b in sides)


@dataclass(frozen=True, eq=False)
class Scales:
    """The measured scales of the rows and columns of each slice, after dead ones were dropped.

    Rows are those of the tall orientation, N >= M. Only ratios within a side matter.
    """

    rows: Floats
    """(slices, N) mean over j of W_ij²/b_j."""
    columns: Floats
    """(slices, M) mean over i of W_ij²/a_i."""
    kurtosis: Floats
    """(slices,) E y²/(E y)² of y = W_ij²/(a_i·b_j): 3 for Gaussian elements, whatever their scales."""
    filled: Floats | float = 1.0
    """(slices,) share of elements that are not zero; 1 if the kurtosis is small."""

    @property
    def are_of_elements(self) -> bool:
        """Return whether rows and columns of all slices differ by single large elements only: see `are_heavy_alone`."""
        is_flat = np.ptp(self.rows, axis=1) + np.ptp(self.columns, axis=1) == 0
        return bool(np.all(is_flat & (self.kurtosis > HEAVY_KURTOSIS)))

    @property
    def spread(self) -> float:
        """Return the larger standard deviation of log₁₀ rms over rows and over columns, in dex, scatter removed."""
        profile = self.profile()
        return max(float(np.log10(side).std(axis=1).mean()) / 2 for side in (profile.rows, profile.columns))

    def profile(self, *, spikes: Floats | float = 0.0, clipped: bool = False) -> Profile:
        """Return the profile of the noise.

        Args:
            spikes: (slices,) Σ p² over the spikes of a slice, where p is the share of Σλ that a spike has: spikes
                whose vectors are spread evenly add 2·Σ p² to the variance of the logarithms.
            clipped: replace scales that lie far from the others, such as the scales of a few large rows.
        """
        n, m = self.rows.shape[1], self.columns.shape[1]
        kurtosis = np.clip(self.kurtosis * self.filled, *_KURTOSIS)  # kurtosis of the elements that are not zero
        excess, (rows, columns) = kurtosis - 1 + kurtosis * (1 / np.asarray(self.filled) - 1) / 2, self._deviations
        return Profile(
            _contracted(rows, excess / m * (1 - 1 / n) + 2 * np.asarray(spikes), clipped=clipped),
            _contracted(columns, excess / n * (1 - 1 / m) + 2 * np.asarray(spikes), clipped=clipped),
        )

    @cached_property
    def _deviations(self) -> tuple[Floats, Floats]:
        """Return the logarithms of both sides, ascending, minus their median; cached for several profiles."""
        return _deviation(self.rows), _deviation(self.columns)


def _spread(scales: Floats) -> Floats:
    """Return the standard deviation of the logarithms, for each slice."""
    return np.log(scales).std(axis=1)


def _deviation(squares: Floats) -> Floats:
    """Return the logarithms of each row, ascending, minus their median."""
    ascending = np.sort(squares, axis=1)
    if ascending[:, 0].min() <= 0:  # a unit that is dead in one slice only: it gets the smallest of the other values
        smallest = np.min(ascending, axis=1, initial=np.inf, where=ascending > 0, keepdims=True)
        ascending = np.maximum(ascending, np.where(np.isfinite(smallest), smallest, 1.0))
    logs = np.log(ascending)
    return logs - _median(logs)


def _contracted(deviation: Floats, scatter: Floats, *, clipped: bool) -> Floats:
    """Return ascending scales of mean 1 whose logarithms have the variance of `deviation` minus that of the scatter."""
    if clipped:
        reach = _OUTLIER * _MAD * _median(np.sort(np.abs(deviation), axis=1))
        deviation = np.clip(deviation, -reach, reach)
    variance = deviation.var(axis=1)
    left = np.clip(1 - scatter / np.maximum(variance, 1e-300), 0, 1)
    left = np.where(left < _MIN_SHARE, 0.0, left)[:, None]
    # A deviation far beyond the scatter is real, even if the others hardly differ.
    alone = 1 - _CERTAIN**2 * scatter[:, None] / np.maximum(deviation**2, 1e-300)
    scales: Floats = np.exp(np.sqrt(np.maximum(left, alone)) * deviation)
    scales /= scales.mean(axis=1, keepdims=True)
    return scales


def _median(ascending: Floats) -> Floats:
    """Return the median of each row as a column; the lower of the two in the middle if their number is even."""
    middle = (ascending.shape[1] - 1) // 2
    return ascending[:, middle : middle + 1]
