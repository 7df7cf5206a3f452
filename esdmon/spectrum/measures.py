"""The built-in measures: each a pure function of a `Spectrum`, each with its value for pure noise where one is known.

Legend: λ are the M eigenvalues (to a slice) of X = WᵀW/N; σᵢ² = N·λᵢ are those of WᵀW; Q = N/M. Sources are those of
Martin & Mahoney, "Implicit self-regularization in deep neural networks", JMLR 22 (2021) 165, unless one is named.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from esdmon.spectrum import localization as loc
from esdmon.spectrum import nulls, setol2025, traps
from esdmon.spectrum.marchenko1967 import mp_edges, mp_mean, mp_quantile
from esdmon.spectrum.spectrum import MIN_BULK, Spectrum

Quantity = Callable[[Spectrum], float]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number read off a spectrum. NaN says that it is undefined there."""

    name: str
    """The key in reports, and after `esdmon_` the tag in TensorBoard and W&B."""
    compute: Quantity
    null: Quantity | None = None
    """Its value for independent elements of the same N and M; reported as `<name>_null`."""
    needs: Literal["", "vectors", "shuffled"] = ""
    """What of a `Spectrum` it needs that is computed on request only; such a measure is not among the default ones."""


def stable_rank(spectrum: Spectrum) -> float:
    """Σλ/λmax = ‖W‖_F²/‖W‖₂², between 1 and M (times slices).

    >>> stable_rank(Spectrum.from_eigenvalues([1.0, 1.0, 2.0], shape=(3, 3)))
    2.0
    """
    return _ratio(float(spectrum.eigenvalues.sum()), spectrum.lambda_max)


def stable_rank_null(spectrum: Spectrum) -> float:
    """M/(1 + 1/√Q)² (times slices): mean λ = 1 and λmax at the Marchenko-Pastur edge."""
    return spectrum.eigenvalues.size / mp_edges(spectrum.q)[1]


def mp_soft_rank(spectrum: Spectrum) -> float:
    """min(1, λ⁺/λmax): 1 for noise, towards 0 as structure leaves the bulk. Each slice in units of its own σ².

    Where M is too small for a bulk to be fitted λ⁺ is that of the variance of all elements.
    """
    if spectrum.m < MIN_BULK:
        return min(1.0, _ratio(_variance(spectrum) * mp_edges(spectrum.q)[1], spectrum.lambda_max))
    return float("nan") if spectrum.bulk is None else spectrum.bulk.soft_rank


def matrix_entropy(spectrum: Spectrum) -> float:
    """−Σ p ln p / ln M with p = λ/Σλ: between 0 (rank one) and 1 (all equal). The paper divides by ln rank."""
    count = spectrum.eigenvalues.size
    if count < 2 or spectrum.lambda_max == 0:
        return float("nan")
    p = spectrum.eigenvalues / spectrum.lambda_max
    p = p / p.sum()
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)) / np.log(count))


def matrix_entropy_null(spectrum: Spectrum) -> float:
    """1 − E[λ ln λ]/ln M under the Marchenko-Pastur law of σ² = 1: mean λ = 1, so p = λ/M."""
    count = spectrum.eigenvalues.size
    if count < 2:
        return float("nan")
    return float(1 - mp_mean(lambda lam: lam * np.log(lam), spectrum.q) / np.log(count))


def hard_rank(spectrum: Spectrum) -> float:
    """Eigenvalues that can be told from 0 (`Spectrum.zero_tolerance`); in float32 within 1 % of M, "exact" exactly."""
    return float(spectrum.nonzero.size)


def lambda_max(spectrum: Spectrum) -> float:
    """λmax of X = WᵀW/N. WeightWatcher's is N times that."""
    return spectrum.lambda_max


def spectral_norm(spectrum: Spectrum) -> float:
    """σmax = ‖W‖₂ = √(N·λmax); of the largest slice."""
    return float((spectrum.n * spectrum.lambda_max) ** 0.5)


def frobenius_norm(spectrum: Spectrum) -> float:
    """‖W‖_F = √(N·Σλ)."""
    return float((spectrum.n * spectrum.eigenvalues.sum()) ** 0.5)


def lambda_max_null(spectrum: Spectrum) -> float:
    """Var(W)·λ⁺: the edge of noise with the variance of the elements."""
    return _variance(spectrum) * mp_edges(spectrum.q)[1]


def spectral_norm_null(spectrum: Spectrum) -> float:
    """√(N·Var(W)·λ⁺)."""
    return float((spectrum.n * lambda_max_null(spectrum)) ** 0.5)


def bulk_sigma_null(spectrum: Spectrum) -> float:
    """√Var(W): in noise all of the variance is in the bulk."""
    return float(_variance(spectrum) ** 0.5)


def hill_alpha(spectrum: Spectrum) -> float:
    """1 + k/Σ ln(λ/λ_med) over the k = n/2 largest. Steadier than alpha, as no xmin is searched; it needs its null.

    Hill, Annals of Statistics 3 (1975) 1163; k = n/2 as in TempBalance (arXiv 2312.00359).
    """
    lam = spectrum.nonzero
    tail = lam[lam.size // 2 :]
    logs = float(np.sum(np.log(tail / tail[0]))) if tail.size else 0.0
    return 1 + tail.size / logs if logs > 0 else float("nan")


def hill_alpha_null(spectrum: Spectrum) -> float:
    """The same under the Marchenko-Pastur law: from 2.12 at Q = 1 (noise scores "ideal") to 10.6 at Q = 64."""
    q = spectrum.q
    tail = mp_quantile(0.5 + (np.arange(2048) + 0.5) / 4096, q)
    return float(1 + 1 / np.mean(np.log(tail / mp_quantile(np.array([0.5]), q))))


def alpha_hat(spectrum: Spectrum) -> float:
    """alpha·log₁₀ λmax(WᵀW). Martin, Peng, Mahoney, Nature Communications 12 (2021) 4122."""
    largest = spectrum.n * spectrum.lambda_max
    return spectrum.power_law.alpha * float(np.log10(largest)) if largest > 0 else float("nan")


def log_alpha_norm(spectrum: Spectrum) -> float:
    """log₁₀ Σ λ(WᵀW)^alpha, summed relative to λmax so that no power overflows. Same source."""
    lam = spectrum.nonzero
    if lam.size == 0:
        return float("nan")
    alpha = spectrum.power_law.alpha
    relative = float(np.log10(np.sum((lam / lam[-1]) ** alpha)))
    return alpha * float(np.log10(spectrum.n * lam[-1])) + relative


def sparsity(spectrum: Spectrum) -> float:
    """The share of elements that are exactly zero, outside rows and columns that are: 0, unless weights were pruned."""
    if spectrum.elements is None:
        return float("nan")
    return spectrum.elements.zeros / (spectrum.n * spectrum.m * spectrum.slices)


def _of_power_law(field: str) -> Quantity:
    return lambda spectrum: float(getattr(spectrum.power_law, field))


def _of_bulk(field: str) -> Quantity:
    return lambda spectrum: float("nan") if spectrum.bulk is None else float(getattr(spectrum.bulk, field))


def _bulk_sigma(spectrum: Spectrum) -> float:
    return float("nan") if spectrum.bulk is None else float(spectrum.bulk.sigma2**0.5)


def _variance(spectrum: Spectrum) -> float:
    """The mean of λ, which is the mean square of the elements."""
    return float(spectrum.eigenvalues.mean())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


def _constant(value: float) -> Quantity:
    return lambda _spectrum: value


BUILT_IN_MEASURES = (
    Measure("alpha", _of_power_law("alpha"), nulls.alpha_null),
    Measure("alpha_stderr", _of_power_law("alpha_stderr")),
    Measure("alpha_low", _of_power_law("alpha_low")),
    Measure("alpha_high", _of_power_law("alpha_high")),
    Measure("xmin", _of_power_law("xmin")),
    Measure("ks_distance", _of_power_law("ks_distance"), nulls.ks_distance_null),
    Measure("n_tail", _of_power_law("n_tail")),
    Measure("hill_alpha", hill_alpha, hill_alpha_null),
    Measure("alpha_hat", alpha_hat),
    Measure("log_alpha_norm", log_alpha_norm),
    Measure("lambda_max", lambda_max, lambda_max_null),
    Measure("spectral_norm", spectral_norm, spectral_norm_null),
    Measure("frobenius_norm", frobenius_norm),
    Measure("stable_rank", stable_rank, stable_rank_null),
    Measure("mp_soft_rank", mp_soft_rank, _constant(1.0)),
    Measure("hard_rank", hard_rank, lambda spectrum: float(spectrum.eigenvalues.size)),
    Measure("matrix_entropy", matrix_entropy, matrix_entropy_null),
    Measure("bulk_sigma", _bulk_sigma, bulk_sigma_null),
    Measure("bulk_edge", _of_bulk("edge"), lambda_max_null),
    Measure("bulk_ks", _of_bulk("ks")),
    Measure("n_spikes", _of_bulk("n_spikes"), _constant(0.0)),
    Measure("erg_rank", setol2025.erg_rank, setol2025.erg_rank_null),
    Measure("erg_gap", setol2025.erg_gap),
    Measure("trap", traps.trap),
    Measure("sparsity", sparsity, _constant(0.0)),
    Measure("trap_spikes", traps.trap_spikes, _constant(0.0), needs="shuffled"),
    *(
        Measure(f"{name}_{part}", over(quantity), null, needs="vectors")
        for name, quantity, null in (
            ("localization", loc.localization, loc.localization_null),
            ("participation", loc.participation, loc.participation_null),
            ("vector_entropy", loc.vector_entropy, None),
        )
        for part, over in (("bulk", loc.over_bulk), ("spikes", loc.over_spikes))
    ),
)
