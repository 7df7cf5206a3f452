"""`Spectrum`: all that a measure may ask of a weight matrix.

Why it holds the two fits: there is one power-law fit and one bulk fit per reading, and what is published is what the
phase and the alerts use. They are computed when first asked for and kept.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.bulk import Bulk, fit_bulk
from esdmon.spectrum.clauset2009 import PowerLawFit, fit_power_law

MIN_BULK = 8
"""M from which a bulk is fitted: fewer eigenvalues have no quantiles to read σ² from."""
_GRAM_NOISE = 4 * np.finfo(np.float64).eps  # of λ/λmax, times M: what a float64 Gram matrix leaves of a zero


@dataclass(frozen=True, slots=True)
class Elements:
    """Statistics of the elements of W, for what the eigenvalues do not tell."""

    mean: float
    variance: float
    minimum: float
    maximum: float
    zero_rows: int = 0
    """Rows of W that were all zero, and were dropped before the spectrum was taken."""
    zero_columns: int = 0
    """Columns likewise."""
    zeros: int = 0
    """Elements that are exactly zero, in the rows and columns that are left."""


# Not slots=True: `cached_property` keeps its values in the instance's dictionary.
@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues λ of X = WᵀW/N of an N × M matrix W, N >= M, and what is known about W besides.

    A convolution is `slices` matrices of one shape, one for each kernel position, whose eigenvalues are pooled.

    >>> Spectrum.from_eigenvalues([3.0, 1.0, 2.0], shape=(6, 3)).eigenvalues
    array([1., 2., 3.])
    """

    by_slice: Floats
    """(slices, M), ascending along the last axis, read-only."""
    shape: tuple[int, int]
    """(N, M) of a slice, N >= M, after zero rows and columns were dropped."""
    elements: Elements | None = None
    dtype: str = "float32"
    """What the weight is stored in: its precision limits the rank that can be told."""
    view: str = "weight"
    """What was read: weight, base, lora-delta, merged or difference."""
    normalisation: str = "WᵀW/N"
    precision: str = "float64"
    """What the eigenvalues were computed in."""
    vectors: Floats | None = None
    """(slices, M, M), on request: column j of a slice belongs to its j-th eigenvalue; on the shorter side of W."""
    shuffled: Floats | None = None
    """(slices, M), on request: the eigenvalues after the elements of W were put in random order."""

    @classmethod
    def from_eigenvalues(
        cls,
        eigenvalues: "Floats | list[float]",
        *,
        shape: tuple[int, int],
        elements: Elements | None = None,
        dtype: str = "float32",
        view: str = "weight",
        precision: str = "float64",
        vectors: Floats | None = None,
        shuffled: Floats | None = None,
    ) -> "Spectrum":
        """A spectrum from the eigenvalues of X = WᵀW/N: (M,), or (slices, M); ascending if vectors are given.

        Raises:
            ValueError: where the shape is not (N, M) with N >= M >= 1, the count is not M to a slice, or a value is not
                finite or negative.
        """
        lam = np.atleast_2d(np.array(eigenvalues, dtype=np.float64))
        n, m = shape
        if not n >= m >= 1:
            msg = f"shape is (N, M) with N >= M >= 1, got {shape}"
            raise ValueError(msg)
        if lam.ndim != 2 or lam.shape[1] != m:
            msg = f"a spectrum of shape {shape} has {m} eigenvalues to a slice, got an array of shape {lam.shape}"
            raise ValueError(msg)
        if not np.all(np.isfinite(lam)) or np.any(lam < 0):
            bad = lam[~np.isfinite(lam) | (lam < 0)]
            msg = f"eigenvalues of WᵀW/N are finite and not negative, got {bad[0]} ({bad.size} of {lam.size} are not)"
            raise ValueError(msg)
        lam = np.sort(lam, axis=1)
        lam.flags.writeable = False
        return cls(lam, (n, m), elements, dtype, view, "WᵀW/N", precision, vectors, shuffled)

    @property
    def n(self) -> int:
        """N, the longer side."""
        return self.shape[0]

    @property
    def m(self) -> int:
        """M, the shorter side, and the eigenvalues of a slice."""
        return self.shape[1]

    @property
    def q(self) -> float:
        """Q = N/M >= 1."""
        return self.n / self.m

    @property
    def slices(self) -> int:
        """Matrices pooled: 1, or the kernel positions of a convolution."""
        return int(self.by_slice.shape[0])

    @cached_property
    def eigenvalues(self) -> Floats:
        """All λ, ascending, slices pooled."""
        pooled: Floats = np.sort(self.by_slice.ravel())
        pooled.flags.writeable = False
        return pooled

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[-1])

    @cached_property
    def zero_tolerance(self) -> float:
        """λ/λmax up to which an eigenvalue cannot be told from 0.

        σ/σmax <= max(N, M)·eps for the eps of the weight's dtype, as LAPACK and numpy take it, squared. For 16-bit
        weights that bound exceeds 1 at N = 256, so there it is the spectral norm of the rounding errors themselves,
        ½·eps·rms(W)·(√N + √M), which `σmax >= rms(W)·√N` keeps below 1. Never less than the noise of the solver.
        """
        eps = _EPS.get(self.dtype, _EPS["float32"])
        relative = self.n * eps
        if eps > _EPS["float32"]:
            mean_over_max = float(self.eigenvalues.mean()) / self.lambda_max if self.lambda_max > 0 else 1.0
            rms_over_max = (mean_over_max / self.n) ** 0.5
            relative = eps / 2 * rms_over_max * (self.n**0.5 + self.m**0.5)
        return max(relative**2, _GRAM_NOISE * self.m)

    @cached_property
    def nonzero(self) -> Floats:
        """The eigenvalues above the zero tolerance, ascending."""
        first = int(np.searchsorted(self.eigenvalues, self.zero_tolerance * self.lambda_max, side="right"))
        return self.eigenvalues[first:]

    @cached_property
    def power_law(self) -> PowerLawFit:
        """The one fit of the tail; on the raw pool of slices, as in the literature."""
        return fit_power_law(self.nonzero)

    @cached_property
    def bulk(self) -> Bulk | None:
        """The one fit of the bulk; None where there is none: M < 8, or half of a slice's eigenvalues are 0."""
        if self.m < MIN_BULK:
            return None
        try:
            return fit_bulk(self.by_slice, self.n, floor=self.zero_tolerance * self.lambda_max)
        except ValueError:
            return None


_EPS = {
    "float64": float(np.finfo(np.float64).eps),
    "float32": float(np.finfo(np.float32).eps),
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
