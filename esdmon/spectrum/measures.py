"""Define the built-in measures: pure functions of a `Spectrum`, with their value for pure noise where it is known.

Legend: λ are the eigenvalues, M per slice, of X = WᵀW/N; σᵢ² = N·λᵢ are those of WᵀW; Q = N/M. The
source is C. H. Martin, M. W. Mahoney, "Implicit self-regularization in deep neural networks", JMLR 22 (2021) 165
(https://arxiv.org/abs/1810.01075), unless another is named. The package docstring has a table of all measures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum import experts, hu2025, nulls, setol2025, shuttleworth2024, traps, zhang2026
from esdmon.spectrum import localization as loc
from esdmon.spectrum import singular_values as sv
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.entropy import matrix_entropy, matrix_entropy_null
from esdmon.spectrum.hill1975 import hill_alpha, hill_alpha_null
from esdmon.spectrum.marchenko1967 import mp_edges
from esdmon.spectrum.spectrum import MIN_BULK, Spectrum

Quantity = Callable[[Spectrum], float]


@explain_wrong_calls
@dataclass(frozen=True, slots=True)
class Measure:
    """A named number that is computed from a spectrum; NaN if it is undefined."""

    name: str
    """The key in reports; with the prefix `esdmon_`, the tag in TensorBoard and W&B."""
    compute: Quantity
    """A function that returns the value for a spectrum."""
    null: Quantity | None = None
    """A function that returns the value for independent elements of the same N and M, reported as `<name>_null`."""
    needs: Literal["", "vectors", "shuffled", "equalised", "windows", "directions"] = ""
    """The part of a `Spectrum` that is computed only for this measure; a measure with `needs` is not a default one."""
    applies: Callable[[Spectrum], bool] | None = None
    """A function that returns whether a spectrum has this measure; if not, records leave it out. None: always."""
    between_readings: bool = False
    """True for a distance from the last reading, which `LayerReport.settle` computes in a watched run."""


def stable_rank(spectrum: Spectrum) -> float:
    """Return Σλ/λmax = ‖W‖_F²/‖W‖₂², between 1 and M (times slices).

    >>> stable_rank(Spectrum.from_eigenvalues([1.0, 1.0, 2.0], shape=(3, 3)))
    2.0
    """
    return _ratio(spectrum.total, spectrum.lambda_max)


def stable_rank_null(spectrum: Spectrum) -> float:
    """Return M/(1 + 1/√Q)² (times slices): mean λ = 1 and λmax at the Marchenko-Pastur edge."""
    return spectrum.eigenvalues.size / mp_edges(spectrum.q)[1]


def mp_soft_rank(spectrum: Spectrum) -> float:
    """Return min(1, λ⁺/λmax): 1 for noise, towards 0 as structure leaves the bulk; NaN if M = 1.

    Each slice is in units of its own σ². Where M is below 8, too small for a bulk fit, λ⁺ uses the mean square of all
    elements as σ². NaN if no bulk of noise was found.
    """
    if spectrum.is_of_norms:
        return float("nan")
    if spectrum.m < MIN_BULK:
        return min(1.0, _ratio(spectrum.mean * mp_edges(spectrum.q)[1], spectrum.lambda_max))
    return float("nan") if spectrum.noise_bulk is None else spectrum.noise_bulk.soft_rank


def hard_rank(spectrum: Spectrum) -> float:
    """Return the number of eigenvalues above `Spectrum.zero_tolerance`.

    It is accurate to 1 % of M if computed from a float32 Gram matrix, and exact with `precision="exact"`.
    """
    return float(spectrum.nonzero.size)


def lambda_max(spectrum: Spectrum) -> float:
    """Return λmax of X = WᵀW/N; the value of WeightWatcher is N times as large."""
    return spectrum.lambda_max


def spectral_norm(spectrum: Spectrum) -> float:
    """Return σmax = ‖W‖₂ = √(N·λmax); for a convolution, the largest over its slices."""
    return float((spectrum.n * spectrum.lambda_max) ** 0.5)


def frobenius_norm(spectrum: Spectrum) -> float:
    """Return ‖W‖_F = √(N·Σλ)."""
    return float((spectrum.n * spectrum.total) ** 0.5)


def lambda_max_null(spectrum: Spectrum) -> float:
    """Return s²·λ⁺, the edge of noise with the mean square s² of W's elements; the largest over the slices."""
    bulk = spectrum.bulk
    if bulk is None or not bulk.is_scaled:
        return spectrum.mean * mp_edges(spectrum.q)[1]
    edges = (variance * law.edge for variance, law in zip(spectrum.slice_variances, bulk.laws, strict=True))
    return spectrum.mean * max(edges)


def spectral_norm_null(spectrum: Spectrum) -> float:
    """Return √(N·s²·λ⁺), the spectral norm of noise with the mean square s² of W's elements."""
    return float((spectrum.n * lambda_max_null(spectrum)) ** 0.5)


def bulk_sigma_null(spectrum: Spectrum) -> float:
    """Return s, the rms of the elements: for pure noise the bulk contains the whole mean square."""
    return float(spectrum.mean**0.5)


def alpha_hat(spectrum: Spectrum) -> float:
    """Return alpha·log₁₀ λmax(WᵀW). Source: Martin, Peng, Mahoney, Nature Communications 12 (2021) 4122."""
    largest = spectrum.n * spectrum.lambda_max
    return spectrum.power_law.alpha * float(np.log10(largest)) if largest > 0 else float("nan")


def log_alpha_norm(spectrum: Spectrum) -> float:
    """Return log₁₀ Σ λ(WᵀW)^alpha, summed relative to λmax so that no power overflows. Source: as `alpha_hat`."""
    lam = spectrum.nonzero
    if lam.size == 0:
        return float("nan")
    alpha = spectrum.power_law.alpha
    relative = float(np.log10(np.sum((lam / lam[-1]) ** alpha)))
    return alpha * float(np.log10(spectrum.n * lam[-1])) + relative


def sparsity(spectrum: Spectrum) -> float:
    """Return the share of exactly zero elements outside dead rows and columns: 0 unless pruned or quantised."""
    if spectrum.elements is None:
        return float("nan")
    return spectrum.elements.zeros / (spectrum.n * spectrum.m * spectrum.slices)


def _of_power_law(field: str) -> Quantity:
    """Return a measure that reads a field of `PowerLawFit`."""
    return lambda spectrum: float(getattr(spectrum.power_law, field))


def rank_use(spectrum: Spectrum) -> float:
    """Return the stable rank of ΔW over the rank r of its adapter: 1/r (rank one) to 1 (r equal singular values).

    A low value means that a smaller r would suffice. Source: ours.
    """
    return _ratio(stable_rank(spectrum), float(spectrum.m))


def base_ratio(_spectrum: Spectrum) -> float:
    """Return NaN: the measure needs two spectra, and is set when records are made.

    The record of an adapter has ‖ΔW‖₂/‖W‖₂ >= 0, the spectral norm of the adapter's ΔW divided by that of its base W.
    It is NaN if the base is not read as one matrix. Above 1 the strongest direction of W + ΔW comes from the adapter.
    Source: ours.
    """
    return math.nan


def logit_bound(spectrum: Spectrum) -> float:
    """Return σmax(W_qᵀW_k)/√d, where d is the head size; the largest over the heads. Only for the view `*/qk`.

    It is an upper bound of the attention logit of two inputs of norm 1, before biases and without rotary embeddings.
    Inputs normalised to an rms of 1 have the norm √D, so their logits are at most D times as large. Rotary embeddings
    rotate q and k relative to each other; with them the bound holds for logits of equal positions. Source: ours.
    """
    return _ratio(spectral_norm(spectrum), float(spectrum.m) ** 0.5)


def _is_qk(spectrum: Spectrum) -> bool:
    return spectrum.view == "qk"


def _is_adapter(spectrum: Spectrum) -> bool:
    return spectrum.view == "lora-delta"


def _of_elements(field: str) -> Quantity:
    """Return a measure that reads a field of `Elements`; NaN if the spectrum has no statistics of elements."""
    return lambda spectrum: float("nan") if spectrum.elements is None else float(getattr(spectrum.elements, field))


def _of_bulk(field: str) -> Quantity:
    """Return a measure that reads a field of `Bulk`; NaN if no bulk of noise was found."""
    return lambda spectrum: float("nan") if spectrum.noise_bulk is None else float(getattr(spectrum.noise_bulk, field))


def _of_equalised(quantity: Quantity) -> Quantity:
    """Return a measure of the matrix scaled to rows and columns of equal mean squares; NaN if that was not computed."""

    def compute(spectrum: Spectrum) -> float:
        if spectrum.equalised is None:
            return float("nan")
        return quantity(Spectrum.from_eigenvalues(spectrum.equalised, shape=spectrum.shape, dtype=spectrum.dtype))

    return compute


def _of_vectors(
    name: str, quantity: Callable[[Floats], Floats], null: Quantity | None = None
) -> tuple[Measure, Measure]:
    """Return two measures of eigenvectors: the mean over the bulk, and the mean over the spikes."""
    return (
        Measure(f"{name}_bulk", partial(loc.mean_over, quantity, spikes=False), null, needs="vectors"),
        Measure(f"{name}_spikes", partial(loc.mean_over, quantity, spikes=True), null, needs="vectors"),
    )


def _bulk_sigma(spectrum: Spectrum) -> float:
    return float("nan") if spectrum.noise_bulk is None else float(spectrum.noise_bulk.sigma2**0.5)


def _bulk_ks(spectrum: Spectrum) -> float:
    return float("nan") if spectrum.bulk is None else spectrum.bulk.ks


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


def _compared(name: str, quantity: Quantity, null: Quantity, *, power: float = 0) -> Measure:
    """Return a measure whose null accounts for unequal scales of rows and columns.

    Args:
        name: name of the measure.
        quantity: computes the measure of a spectrum.
        null: computes its value for noise with equal scales.
        power: the measure is proportional to this power of the variance of the elements.
    """

    def compute(spectrum: Spectrum) -> float:
        noise = spectrum.scaled_noise
        return null(spectrum) if noise is None else float(quantity(noise)) * spectrum.mean**power

    return Measure(name, quantity, compute)


def _constant(value: float) -> Quantity:
    return lambda _spectrum: value


BUILT_IN_MEASURES = (
    _compared("alpha", _of_power_law("alpha"), nulls.alpha_null),
    Measure("alpha_stderr", _of_power_law("alpha_stderr")),
    Measure("alpha_low", _of_power_law("alpha_low")),
    Measure("alpha_high", _of_power_law("alpha_high")),
    Measure("xmin", _of_power_law("xmin")),
    _compared("ks_distance", _of_power_law("ks_distance"), nulls.ks_distance_null),
    Measure("n_tail", _of_power_law("n_tail")),
    _compared("hill_alpha", hill_alpha, hill_alpha_null),
    Measure("alpha_hat", alpha_hat),
    Measure("log_alpha_norm", log_alpha_norm),
    Measure("lambda_max", lambda_max, lambda_max_null),
    Measure("spectral_norm", spectral_norm, spectral_norm_null),
    Measure("frobenius_norm", frobenius_norm),
    _compared("stable_rank", stable_rank, stable_rank_null),
    Measure("mp_soft_rank", mp_soft_rank, _constant(1.0)),
    Measure("hard_rank", hard_rank, lambda spectrum: float(spectrum.eigenvalues.size)),
    _compared("matrix_entropy", matrix_entropy, matrix_entropy_null),
    _compared("effective_rank", sv.effective_rank, sv.effective_rank_null),
    _compared("nuclear_norm", sv.nuclear_norm, sv.nuclear_norm_null, power=0.5),
    _compared("sigma_min", sv.sigma_min, sv.sigma_min_null, power=0.5),
    _compared("condition_number", sv.condition_number, sv.condition_number_null),
    Measure("spectral_gap", sv.spectral_gap),
    Measure("snr", sv.snr, _constant(0.0)),
    Measure(zhang2026.DISTANCE, zhang2026.spectral_distance, between_readings=True),
    Measure("bulk_sigma", _bulk_sigma, bulk_sigma_null),
    Measure("bulk_edge", _of_bulk("edge"), lambda_max_null),
    Measure("bulk_ks", _bulk_ks),
    Measure("n_spikes", _of_bulk("n_spikes"), _constant(0.0)),
    _compared("erg_rank", setol2025.erg_rank, setol2025.erg_rank_null),
    Measure("erg_gap", setol2025.erg_gap),
    Measure("trap", traps.trap),
    Measure("trap_is_local", traps.trap_is_local, applies=traps.is_trapped),
    Measure("trap_mean", traps.trap_mean, applies=traps.is_trapped),
    *(
        Measure(f"trap_{field}", traps.of_trap(field), applies=traps.is_trapped)
        for field in ("count", "row", "column", "value", "share")
    ),
    Measure("zero_rows", _of_elements("zero_rows")),
    Measure("zero_columns", _of_elements("zero_columns")),
    Measure("weak_rows", _of_elements("weak_rows")),
    Measure("weak_columns", _of_elements("weak_columns")),
    *(
        Measure(f"{name}_{end}", experts.over_experts(quantity, choose), applies=experts.are_experts)
        for name, quantity in (
            ("hill_alpha", hill_alpha),
            ("stable_rank", stable_rank),
            ("spectral_norm", spectral_norm),
            ("frobenius_norm", frobenius_norm),
        )
        for end, choose in (("min", min), ("max", max))
    ),
    Measure("rank_use", rank_use, applies=_is_adapter),
    Measure("base_ratio", base_ratio, applies=_is_adapter),
    Measure("logit_bound", logit_bound, applies=_is_qk),
    Measure("sparsity", sparsity, _constant(0.0)),
    Measure("trap_spikes", traps.trap_spikes, _constant(0.0), needs="shuffled"),
    Measure("equalised_spikes", _of_equalised(_of_bulk("n_spikes")), _constant(0.0), needs="equalised"),
    Measure("equalised_alpha", _of_equalised(_of_power_law("alpha")), nulls.alpha_null, needs="equalised"),
    Measure("equalised_soft_rank", _of_equalised(mp_soft_rank), _constant(1.0), needs="equalised"),
    Measure("intruders", shuttleworth2024.intruders, needs="directions", applies=shuttleworth2024.has_reference),
    Measure(
        "reference_overlap",
        shuttleworth2024.reference_overlap,
        shuttleworth2024.overlap_null,
        needs="directions",
        applies=shuttleworth2024.has_reference,
    ),
    Measure(
        "subspace_overlap",
        shuttleworth2024.subspace_overlap,
        shuttleworth2024.overlap_null,
        needs="directions",
        between_readings=True,
    ),
    Measure("farms_alpha", hu2025.farms_alpha, hu2025.farms_alpha_null, needs="windows"),
    *_of_vectors("localization", loc.localization, loc.localization_null),
    *_of_vectors("participation", loc.participation, loc.participation_null),
    *_of_vectors("vector_entropy", loc.vector_entropy),
)
