"""Classify a spectrum into one of the 5+1 phases of training, with a confidence and an explanation."""

import math

from esdmon.spectrum.bulk import Bulk, spike_reach
from esdmon.spectrum.confidence import count_dead, is_collapsed, to_other_phase, to_other_rank
from esdmon.spectrum.phases import Evidence, Phase, PhaseReading, PhaseThresholds, decide
from esdmon.spectrum.spectrum import Spectrum
from esdmon.spectrum.vuong1989 import power_law_against_exponential


def classify(spectrum: Spectrum, thresholds: PhaseThresholds | None = None) -> PhaseReading:
    """Return the phase of a spectrum, its confidence, and the evidence for it.

    Args:
        spectrum: the spectrum; statistics of its elements are used where it has them.
        thresholds: the borders between phases; None takes the defaults, which cite their sources.

    >>> classify(Spectrum.from_eigenvalues([1.0] * 10, shape=(20, 10))).explanation
    'M is below 64: too small to distinguish noise from structure.'
    """
    limits = thresholds or PhaseThresholds()
    refusal = _refusal(spectrum, limits)
    if refusal:
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, refusal)
    if is_collapsed(spectrum, limits):
        return _collapsed(spectrum, limits)
    bulk = spectrum.bulk
    if bulk is None:
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, "Half of the eigenvalues of a slice are zero: it has no bulk.")
    evidence = _evidence(spectrum, bulk, limits)
    phase = decide(evidence, limits)
    confidence = 0.0
    if phase is not Phase.UNCLASSIFIED:
        confidence = min(to_other_phase(evidence, phase, limits), to_other_rank(spectrum, limits))
    meaningful = _alpha_is_meaningful(spectrum, bulk, phase, limits)
    fit = spectrum.power_law
    return PhaseReading(
        phase=phase,
        confidence=confidence,
        explanation=_explain(phase, evidence, spectrum),
        alpha_is_meaningful=meaningful,
        over_regularized=meaningful and fit.alpha_high + 2 * fit.alpha_stderr < 2,
    )


def _collapsed(spectrum: Spectrum, limits: PhaseThresholds) -> PhaseReading:
    """Return the reading of a spectrum with too many zeros; for a difference of weights that is not a phase."""
    rank, count = spectrum.nonzero.size, spectrum.eigenvalues.size
    if spectrum.view == "difference":
        text = f"The change has rank {rank} of {count}: it is of low rank, or few rows have moved."
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, text)
    text = f"{count - rank} of {count} eigenvalues are zero: the rank has collapsed to {rank / count:.0%} of full."
    return PhaseReading(Phase.RANK_COLLAPSE, min(1.0, to_other_rank(spectrum, limits)), text)


def _refusal(spectrum: Spectrum, limits: PhaseThresholds) -> str:
    """Return why a spectrum has no phase before any fit; empty where it may have one."""
    if spectrum.lambda_max == 0:
        return "All weights are zero."
    if spectrum.view == "lora-delta":
        return f"An adapter of rank {spectrum.m}: phases are defined for whole weights."
    if spectrum.m < limits.min_m:
        return f"M is below {limits.min_m}: too small to distinguish noise from structure."
    dead = count_dead(spectrum)
    if dead / (dead + spectrum.n + spectrum.m) > limits.max_dead:
        return f"{dead} rows and columns are zero: too little of the layer is left."
    return ""


def _evidence(spectrum: Spectrum, bulk: Bulk, limits: PhaseThresholds) -> Evidence:
    fit = spectrum.power_law
    return Evidence(
        soft_rank=bulk.soft_rank,
        spikes=bulk.n_spikes,
        few=max(limits.few_share * bulk.standardised.size, limits.few_spikes),
        many=limits.heavy_share * bulk.standardised.size,
        ks=bulk.ks,
        alpha=fit.alpha,
        tail_ks=fit.ks_distance * fit.n_tail**0.5,
        ratio=power_law_against_exponential(spectrum.eigenvalues, fit).ratio,
        reach=spike_reach(spectrum.by_slice, spectrum.n, bulk.spikes),
    )


def _alpha_is_meaningful(spectrum: Spectrum, bulk: Bulk, phase: Phase, limits: PhaseThresholds) -> bool:
    fit = spectrum.power_law
    return (
        phase in (Phase.BULK_SPIKES, Phase.BULK_DECAY, Phase.HEAVY_TAILED)
        and fit.n_tail >= limits.min_n_tail
        # Where the whole spectrum is a power law, its tail may extend below any edge.
        and (phase is Phase.HEAVY_TAILED or bulk.n_spikes >= max(limits.min_spikes, limits.tail_spikes * fit.n_tail))
        and fit.ks_distance <= limits.max_ks_distance
        and fit.alpha_high - fit.alpha_low <= limits.max_alpha_range
    )


def _explain(phase: Phase, e: Evidence, spectrum: Spectrum) -> str:
    if phase is Phase.UNCLASSIFIED:
        return (
            f"No eigenvalue is above the bulk, yet the bulk is not random (KS·M {e.ks:.1f}): "
            "orthogonal or rescaled weights look like this."
        )
    if phase is Phase.RANDOM_LIKE:
        return f"No eigenvalue is above the bulk, and the bulk is that of noise (KS·M {e.ks:.1f})."
    times = 1 / e.soft_rank if e.soft_rank > 0 else math.inf
    count = "1 eigenvalue is" if e.spikes == 1 else f"{e.spikes:.0f} eigenvalues are"
    text = f"λmax is {times:.3g} × the bulk edge; {count} above it"
    if phase is Phase.BULK_SPIKES:
        return f"{text}; the bulk is that of noise (KS·M {e.ks:.1f})."
    if phase is Phase.BLEEDING_OUT:
        return f"{text}, none of them far."
    tail = f"alpha {e.alpha:.2f} on {spectrum.power_law.n_tail} eigenvalues"
    if phase is Phase.HEAVY_TAILED:
        return f"{text}, as a power law: {tail}."
    why = "more than a few" if e.spikes > e.few else f"but the bulk is not that of noise (KS·M {e.ks:.1f})"
    return f"{text}, {why}; {tail}."
