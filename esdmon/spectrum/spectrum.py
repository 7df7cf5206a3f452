"""Define `Spectrum`: the eigenvalues of a weight matrix and all other data that a measure may need.

The fits of the power law and of the bulk are properties of the spectrum. Each is computed at its first use and kept, so
measures, phase and alerts of a reading use the same fits.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import EPS, Floats
from esdmon.spectrum.bulk import CLEAN_KS, Bulk, fit_bulk, fit_scaled, is_noise
from esdmon.spectrum.clauset2009 import PowerLawFit, fit_power_law
from esdmon.spectrum.elements import Elements
from esdmon.spectrum.laws import NoiseLaw
from esdmon.spectrum.recent_laws import Laws
from esdmon.spectrum.scales import Scales
from esdmon.spectrum.separable import separable_laws

MIN_BULK = 8
"""Smallest M for a bulk fit: fewer eigenvalues have no quantiles to estimate σ² from. Our choice."""
OF_ATTENTION = ("qk", "ov")
"""Views that are products of projections of attention; the law of noise holds for one matrix, not for a product."""
PRODUCTS = ("lora-delta", *OF_ATTENTION)
"""Views that are products of two weights. They have singular values, but neither elements nor nulls."""
_GAP = 1e-3  # ratio of two neighbouring eigenvalues; our choice
_GRAM_NOISE = 4 * np.finfo(np.float64).eps  # times M: error of λ/λmax of a zero in a float64 Gram matrix


# Not slots=True: `cached_property` keeps its values in the instance's dictionary.
@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues λ of X = WᵀW/N of an N × M matrix W, N >= M, with metadata about W.

    A convolution has `slices` matrices of the same shape, one for each kernel position. Their eigenvalues are pooled.

    >>> Spectrum.from_eigenvalues([3.0, 1.0, 2.0], shape=(6, 3)).eigenvalues
    array([1., 2., 3.])
    """

    by_slice: Floats
    """(slices, M): the eigenvalues, ascending along the last axis, read-only."""
    shape: tuple[int, int]
    """(N, M) of a slice, N >= M, without zero rows and columns."""
    elements: Elements | None = None
    """Statistics of the elements of W; None if they are not known: then measures that need them are NaN."""
    dtype: str = "float32"
    """Type in which the weight is stored; its precision sets the zero tolerance."""
    view: str = "weight"
    """The matrix that was read: weight, base, lora-delta, merged, difference, update, momentum, qk or ov."""
    kind: str = ""
    """Kind of layer, such as `linear` or `experts`; empty if it is not known."""
    normalisation: str = "WᵀW/N"
    """The matrix whose eigenvalues these are. Always WᵀW/N, for comparison with other tools: WeightWatcher has the
    eigenvalues of WᵀW, which are N times as large."""
    precision: str = "float64"
    """Floating-point type in which the eigenvalues were computed."""
    vectors: Floats | None = None
    """(slices, M, M), on request: column j is the singular vector of the j-th eigenvalue, on the shorter side of W."""
    from_gram: bool = True
    """True for eigenvalues of a computed WᵀW, in which λ below about eps·λmax are lost; False for squares of singular
    values."""
    shuffled: Floats | None = None
    """(slices, M), on request: the eigenvalues after shuffling the elements of W."""
    equalised: Floats | None = None
    """(slices, M), on request: the eigenvalues after scaling rows and columns of W to equal mean squares."""
    windows: Floats | None = None
    """(windows, M), on request: the eigenvalues of square windows that cover W."""
    directions: Floats | None = None
    """(slices, k, rows), on request: the k strongest left singular vectors of W, strongest first; missing ones are
    zero."""
    cosines: Floats | None = None
    """(slices, k, M), if W has a reference W₀: |cos| of the angles between `directions` and all left singular vectors
    of W₀."""
    last_directions: Floats | None = None
    """The directions at the last reading."""
    scales: Scales | None = None
    """Scales of rows and columns; None for noise of equal scales."""
    scales_of_rest: Scales | None = None
    """Scales without the strongest directions, where no law of noise explains the bulk and alpha is below 2."""
    laws: Laws = separable_laws
    """Function that computes the laws of noise for `scales`."""

    @classmethod
    @explain_wrong_calls
    def from_eigenvalues(
        cls,
        eigenvalues: "Floats | list[float]",
        *,
        shape: tuple[int, int],
        elements: Elements | None = None,
        dtype: str = "float32",
        view: str = "weight",
        kind: str = "",
        precision: str = "float64",
        from_gram: bool = True,
        vectors: Floats | None = None,
        shuffled: Floats | None = None,
        equalised: Floats | None = None,
        windows: Floats | None = None,
        scales: Scales | None = None,
    ) -> "Spectrum":
        """Create a spectrum from the eigenvalues of X = WᵀW/N.

        `eigenvalues` are (M,) or (slices, M), in any order, but ascending if `vectors` are given. The other arguments
        are the fields of these names.

        Raises:
            ValueError: if the shape is not (N, M) with N >= M >= 1, if a slice does not have M eigenvalues, or if an
                eigenvalue is negative or not finite.
        """
        lam = np.atleast_2d(np.array(eigenvalues, dtype=np.float64))
        n, m = shape
        if not n >= m >= 1:
            raise ValueError(f"shape must be (N, M) with N >= M >= 1; got {shape}")
        if lam.ndim != 2 or lam.shape[1] != m:
            raise ValueError(
                f"a spectrum of shape {shape} needs {m} eigenvalues per slice; got an array of shape {lam.shape}"
            )
        if not np.all(np.isfinite(lam)) or np.any(lam < 0):
            bad = lam[~np.isfinite(lam) | (lam < 0)]
            raise ValueError(
                f"eigenvalues of WᵀW/N must be finite and not negative; got {bad[0]} ({bad.size} of {lam.size} are not)"
            )
        lam = np.sort(lam, axis=1)
        lam.flags.writeable = False
        return cls(
            lam,
            (n, m),
            elements=elements,
            dtype=dtype,
            view=view,
            kind=kind,
            precision=precision,
            from_gram=from_gram,
            vectors=vectors,
            shuffled=shuffled,
            equalised=equalised,
            windows=windows,
            scales=scales,
        )

    @property
    def n(self) -> int:
        """Return N, the longer side."""
        return self.shape[0]

    @property
    def m(self) -> int:
        """Return M, the shorter side and the number of eigenvalues of a slice."""
        return self.shape[1]

    @property
    def q(self) -> float:
        """Return Q = N/M >= 1."""
        return self.n / self.m

    @property
    def slices(self) -> int:
        """Return the number of pooled matrices: 1, or the kernel positions of a convolution."""
        return int(self.by_slice.shape[0])

    @cached_property
    def eigenvalues(self) -> Floats:
        """Return all λ, ascending, with slices pooled."""
        pooled: Floats = np.sort(self.by_slice.ravel())
        pooled.flags.writeable = False
        return pooled

    @property
    def lambda_max(self) -> float:
        """Return the largest eigenvalue."""
        return float(self.eigenvalues[-1])

    @cached_property
    def total(self) -> float:
        """Return Σλ."""
        return float(self.eigenvalues.sum())

    @property
    def mean(self) -> float:
        """Return the mean of λ, which is the mean square of the elements."""
        return self.total / self.eigenvalues.size

    @cached_property
    def zero_tolerance(self) -> float:
        """Return the largest λ/λmax of an eigenvalue that counts as 0.

        It is the square of σ/σmax = max(N, M)·eps, with the eps of the weight's dtype, as in LAPACK and numpy. For
        16-bit weights this bound exceeds 1 at N = 256. For them the bound of σ is the spectral norm of the rounding
        errors, ½·eps·rms(W)·(√N + √M), which is below σmax, since σmax >= rms(W)·√N. The tolerance is at least the
        noise of WᵀW in float64.
        """
        eps = EPS.get(self.dtype, EPS["float32"])
        relative = self.n * eps
        if eps > EPS["float32"]:
            mean_over_max = self.mean / self.lambda_max if self.lambda_max > 0 else 1.0
            rms_over_max = (mean_over_max / self.n) ** 0.5
            relative = eps / 2 * rms_over_max * (self.n**0.5 + self.m**0.5)
        return max(relative**2, _GRAM_NOISE * self.m if self.from_gram else 0.0)

    @cached_property
    def nonzero(self) -> Floats:
        """Return the eigenvalues above the zero tolerance, ascending."""
        first = int(np.searchsorted(self.eigenvalues, self.zero_tolerance * self.lambda_max, side="right"))
        return self.eigenvalues[first:]

    @property
    def rank(self) -> int:
        """Return the number of nonzero eigenvalues, which is used to decide the phase.

        For float64 weights, eigenvalues that would be 0 in float32 do not count if a gap separates them from the
        others: a bulk that has decayed to 1e-6 of the learned part has collapsed in any dtype.
        """
        count = self.eigenvalues.size
        zeros = int(np.searchsorted(self.eigenvalues, (self.n * EPS["float32"]) ** 2 * self.lambda_max, side="right"))
        is_apart = 0 < zeros < count and self.eigenvalues[zeros - 1] < _GAP * self.eigenvalues[zeros]
        return min(count - zeros, self.nonzero.size) if is_apart else self.nonzero.size

    @property
    def is_of_norms(self) -> bool:
        """Return whether M = 1, so that each eigenvalue is a squared norm, as in a depthwise convolution.

        Each λ is then the mean square of a column. Such slices have norms, but neither a tail nor an edge of noise.
        """
        return self.m == 1

    @cached_property
    def power_law(self) -> PowerLawFit:
        """Return the power-law fit of the tail of the pooled eigenvalues; a fit without values if M = 1."""
        return PowerLawFit(reason="each slice has one eigenvalue") if self.is_of_norms else fit_power_law(self.nonzero)

    @cached_property
    def bulk(self) -> Bulk | None:
        """Return the fit of the bulk; None if M < 8, or if half of the eigenvalues of a slice are 0 and not by noise.

        Noise of very unequal scales may have that many zeros too.
        """
        plain = self.plain_bulk
        if self.scales is None or (plain is not None and is_noise(plain)):
            return plain
        return fit_scaled(plain, self.by_slice, self.n, self.scales, self.laws, rest=self.scales_of_rest)

    @cached_property
    def plain_bulk(self) -> Bulk | None:
        """Return the fit of the bulk with the law of equal scales."""
        if self.m < MIN_BULK or self.view in OF_ATTENTION:
            return None
        try:
            return fit_bulk(self.by_slice, self.n, floor=self.zero_tolerance * self.lambda_max)
        except ValueError:
            return None

    def with_scales(self, scales: Scales, laws: Laws = separable_laws) -> "Spectrum":
        """Return this spectrum with the scales of rows and columns; computed values that stay valid are kept."""
        return self._keeping(replace(self, scales=scales, laws=laws), "bulk", *_NOISES)

    def with_rest(self, rest: Scales) -> "Spectrum":
        """Return this spectrum with the scales of what is left without its spikes; other computed values are kept."""
        return self._keeping(replace(self, scales_of_rest=rest), "bulk", *_NOISES)

    def with_directions(self, now: Floats, cosines: Floats | None, last: Floats | None) -> "Spectrum":
        """Return this spectrum with directions; computed values, such as the fits, are kept."""
        return self._keeping(replace(self, directions=now, cosines=cosines, last_directions=last))

    def _keeping(self, other: "Spectrum", *changed: str) -> "Spectrum":
        """Return the other spectrum with the computed values of this one that it lacks, without the changed ones."""
        vars(other).update(
            {name: value for name, value in vars(self).items() if name not in vars(other) and name not in changed}
        )
        return other

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle in a worker process, without spectra of noise, which are computed again."""
        return {name: value for name, value in vars(self).items() if name not in _NOISES}

    @property
    def is_product(self) -> bool:
        """Return whether W is a product of two weights, represented by a matrix that has its singular values."""
        return self.view in PRODUCTS

    @cached_property
    def scaled_noise(self) -> "Spectrum | None":
        """Return the spectrum of noise with the same scales and variance 1; None if equal scales explain the bulk.

        It has the quantiles of the law of each slice at (i − ½)/M, times the variance of the slice.
        """
        if self.bulk is None or not self.bulk.is_scaled:
            return None
        return _noise_of(self.bulk.laws, self.shape, self.slice_variances, self.dtype)

    @cached_property
    def noises_of_scales(self) -> "tuple[Spectrum, ...]":
        """Return `scaled_noise`, and noise of the measured scales where these did not explain the bulk.

        Empty where noise of equal scales explains it: then strong spikes may have made the measured scales unequal.
        """
        noises = [] if self.scaled_noise is None else [self.scaled_noise]
        is_unexplained = self.bulk is not None and self.bulk.ks > CLEAN_KS
        if self.scales is not None and (self.scales_of_rest is not None or (is_unexplained and not noises)):
            profile = self.scales.profile()
            if not profile.is_flat:
                noises.append(_noise_of(self.laws(profile), self.shape, self.slice_variances, self.dtype))
        return tuple(noises)

    @cached_property
    def slice_variances(self) -> tuple[float, ...]:
        """Return mean λ of each slice over mean λ of all, rounded within 10 % so that nulls change seldom."""
        means = self.by_slice.mean(axis=1)
        rounded = np.exp(_VARIANCE_STEP * np.round(np.log(means / means.mean()) / _VARIANCE_STEP))
        return tuple(map(float, rounded / rounded.mean()))

    @property
    def noise_bulk(self) -> Bulk | None:
        """Return the fit of the bulk if noise explains it, so that edge and spikes are meaningful; else None."""
        return self.bulk if self.bulk is not None and self.bulk.is_found else None


@lru_cache(maxsize=256)
def _noise_of(laws: tuple[NoiseLaw, ...], shape: tuple[int, int], variances: tuple[float, ...], dtype: str) -> Spectrum:
    """Return `Spectrum.scaled_noise`, cached by the laws, so that the fits of reused laws are computed once."""
    probabilities = (np.arange(shape[1]) + 0.5) / shape[1]
    quantiles = np.stack([law.quantile(probabilities) for law in laws]) * np.array(variances)[:, None]
    return Spectrum.from_eigenvalues(quantiles / quantiles.mean(), shape=shape, dtype=dtype)


_NOISES = ("scaled_noise", "noises_of_scales")  # computed values
_VARIANCE_STEP = 0.2  # of the logarithm; our choice
