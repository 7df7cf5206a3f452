"""Compute the spectrum of a stack of matrices through the protocol `Stack`, and choose its precision.

Method: X = AᵀA on the shorter side, then a values-only symmetric solver: 3 to 9 times cheaper than singular values. In
float32 an eigenvalue that is 0 is computed as at most 5e-7 λmax (both solvers, M from 64 to 4096). A spectrum is
computed again in float64 in three cases: if more than 1 % of it lies below 1e-6 λmax, since the rank would depend on
this error; if the power law begins below 1e-4 λmax, since alpha might depend on it; and if eigenvalues repeat, as in
weights with shared blocks, since rounding would decide which of them count as equal in the fit. The condition number of
AᵀA is the square of A's. So if a float64 weight has eigenvalues that are lost in a float64 AᵀA, the singular values of
A itself are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.bulk import MAX_SPIKE_SHARE, is_clean, is_noise
from esdmon.spectrum.elements import Elements
from esdmon.spectrum.phases import PhaseThresholds
from esdmon.spectrum.recent_laws import Laws
from esdmon.spectrum.scales import Scales
from esdmon.spectrum.separable import separable_laws
from esdmon.spectrum.spectrum import PRODUCTS, Spectrum

Precision: TypeAlias = Literal["float32", "float64"]

_SMALL = 1e-6  # of λmax: twice the largest error of float32
_SMALL_SHARE = 0.01  # of the eigenvalues; our choice
_LOW_XMIN = 1e-4  # of λmax: above, alpha in float32 is within 6e-5 of that in float64; below, within 0.03 (320 draws)
_EQUAL = 1e-5  # relative difference of neighbours that are equal but for the rounding of float32
_EQUAL_SHARE = 0.1  # of the neighbours: 0 in noise and heavy tails (M from 32 to 2048), 0.49 to 1 where all repeat
_MIN_M = PhaseThresholds().min_m
_LOW_ALPHA = 2.0  # below, a layer may be over-regularised
_ROUNDS = 4  # at most, until the number of spikes settles; our choice


class Stack(Protocol):
    """Matrices of one shape with their decompositions: the weight divided by a scale, and stacks derived from it."""

    def eigenvalues(self, precision: Precision, *, of: str = "weight") -> Floats:
        """Return the eigenvalues of AᵀA, (slices, M); `of` is "weight" or an item of `Weight.also`."""

    def eigenvectors(self) -> tuple[Floats, Floats]:
        """Return eigenvalues (slices, M) and eigenvectors (slices, M, M) of AᵀA of the weight, in float64."""

    def singular_values(self) -> Floats:
        """Return the singular values of the weight, (slices, M)."""

    def scales(self) -> Scales:
        """Return the scales of rows and columns of the weight."""

    def scales_of_rest(self, counts: Sequence[int]) -> Scales:
        """Return the scales of the weight without the strongest directions of each slice; `counts` says how many."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Properties of a weight, and what of it is computed."""

    dtype: str
    """Type in which the weight is stored; its stack may have a wider type."""
    view: str
    kind: str
    exact: bool
    """True if everything is computed in float64."""
    also: frozenset[str]
    """The requested optional parts: "vectors", "shuffled", "equalised", "windows"; see `Spectrum`."""
    least: int
    """Smallest number of eigenvalues of a weight that is read."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a weight before its stack is decomposed."""

    weight: Weight
    shape: tuple[int, int]
    """(N, M) of a slice, N >= M."""
    scale: float
    """Number that the weight was divided by."""
    elements: Elements

    @property
    def may_have_scales(self) -> bool:
        """Return whether noise with unequal scales is considered: only if the matrix is large enough for a phase."""
        return self.weight.view not in PRODUCTS and self.shape[1] >= _MIN_M


def spectrum_of(stack: Stack, facts: Facts, laws: Laws = separable_laws) -> Spectrum:
    """Compute the spectrum of a stack.

    Args:
        stack: the matrices, without dead rows and columns.
        facts: what is known of them.
        laws: computes the laws of noise with the scales of rows and columns.
    """
    one = _decomposed(stack, facts)
    if not facts.may_have_scales:
        return one
    plain = one.plain_bulk
    if plain is not None and is_noise(plain):  # noise of equal scales needs none
        return one
    return _beyond_spikes(one.with_scales(stack.scales(), laws), stack)


def _decomposed(stack: Stack, facts: Facts) -> Spectrum:
    """Return the spectrum of a stack without its scales, in float32 where this is accurate enough."""
    (n, m), weight, also = facts.shape, facts.weight, facts.weight.also
    to_spectrum = facts.scale**2 / n
    derived = partial(_derived, stack, exact=weight.exact)
    create = partial(
        Spectrum.from_eigenvalues,
        shape=facts.shape,
        # The matrix that represents a product has its singular values, but not its elements.
        elements=None if weight.view in PRODUCTS else facts.elements,
        dtype=weight.dtype,
        view=weight.view,
        kind=weight.kind,
        shuffled=derived("shuffled") * to_spectrum if "shuffled" in also else None,
        equalised=derived("equalised") / n if "equalised" in also else None,
        windows=derived("windows") * facts.scale**2 / m if "windows" in also else None,
    )
    if "vectors" in also:
        lam, vectors = stack.eigenvectors()
        return create(lam * to_spectrum, vectors=vectors)
    if not weight.exact:
        quick = create(stack.eigenvalues("float32") * to_spectrum, precision="float32")
        if _is_safe(quick):
            return quick
    full = create(stack.eigenvalues("float64") * to_spectrum)
    if weight.dtype == "float64" and full.nonzero.size < full.eigenvalues.size:
        return create(np.square(stack.singular_values()) * to_spectrum, from_gram=False)
    return full


def _derived(stack: Stack, name: str, *, exact: bool) -> Floats:
    """Return the eigenvalues of a derived stack, in float64 if many are small."""
    lam = stack.eigenvalues("float64" if exact else "float32", of=name)
    return lam if exact or _has_few_small(lam) else stack.eigenvalues("float64", of=name)


def _beyond_spikes(one: Spectrum, stack: Stack) -> Spectrum:
    """Return a spectrum with scales that are measured without its spikes, if its phase may depend on them.

    It may if alpha is below 2 and no law of noise explains the bulk below a few spikes. At first the tail of noise of
    unequal scales may count as spikes, so the scales are measured again until the number of spikes settles.
    """
    for _ in range(_ROUNDS):
        bulk = one.bulk
        is_suspect = bulk is not None and bulk.n_spikes > 0 and not is_clean(bulk) and one.power_law.alpha < _LOW_ALPHA
        if bulk is None or not is_suspect or bulk.spike_share > MAX_SPIKE_SHARE:
            break
        one = one.with_rest(stack.scales_of_rest(bulk.spikes))
    return one


def _is_safe(quick: Spectrum) -> bool:
    """Return whether the rank and alpha of a float32 spectrum do not depend on float32's rounding errors."""
    fit = quick.power_law
    if not _has_few_small(quick.eigenvalues) or fit.xmin < _LOW_XMIN * quick.lambda_max:
        return False
    return bool(np.isnan(fit.alpha)) or not _repeats(quick.by_slice)


def _repeats(ascending: Floats) -> bool:
    """Return whether many eigenvalues of a slice are equal up to rounding; (slices, M), each slice in order."""
    return bool(np.mean(np.diff(ascending, axis=1) < _EQUAL * ascending[:, 1:]) > _EQUAL_SHARE)


def _has_few_small(eigenvalues: Floats) -> bool:
    """Return whether few eigenvalues are so small that they might be float32's rounding errors."""
    return bool(np.mean(eigenvalues < _SMALL * eigenvalues.max()) <= _SMALL_SHARE)
