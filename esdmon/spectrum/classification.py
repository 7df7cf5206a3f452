"""Classify a spectrum into one of the 5+1 phases of training, with a confidence and an explanation."""

import math

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.bulk import Bulk, spike_reach
from esdmon.spectrum.confidence import to_other_phase, to_other_rank
from esdmon.spectrum.phases import (
    CRITICAL,
    Evidence,
    Phase,
    PhaseReading,
    PhaseThresholds,
    dead_share,
    decide,
    has_left_bulk,
    is_collapsed,
)
from esdmon.spectrum.spectrum import Spectrum
from esdmon.spectrum.traps import trap
from esdmon.spectrum.vuong1989 import power_law_against_exponential

_BESIDE = 1.25  # times λ⁺: a spike below this counts as beside the bulk; our choice


@explain_wrong_calls
def classify(spectrum: Spectrum, thresholds: PhaseThresholds | None = None) -> PhaseReading:
    """Return the phase of a spectrum, its confidence, and the evidence for it.

    Args:
        spectrum: the spectrum; statistics of elements and scales of rows and columns are used if it has them.
        thresholds: the borders between phases; None uses the defaults of `PhaseThresholds`, where the sources are
            cited.

    >>> classify(Spectrum.from_eigenvalues([1.0] * 10, shape=(20, 10))).explanation
    'M is below 32: too small to distinguish noise from structure.'
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
    phase = decide(evidence)
    confidence = 0.0
    if phase is not Phase.UNCLASSIFIED:
        confidence = min(to_other_phase(evidence, phase), to_other_rank(spectrum, limits))
    is_meaningful = _alpha_is_meaningful(spectrum, evidence, phase)
    explanation = " ".join((_explain(phase, evidence, spectrum, bulk), *_remarks(spectrum, phase)))
    if (is_meaningful or phase is Phase.HEAVY_TAILED) and _is_of_scales(spectrum):
        explanation += " Noise with the same row and column scales has such a tail too."
        is_meaningful = False
        if phase is Phase.HEAVY_TAILED:
            phase, confidence = Phase.UNCLASSIFIED, 0.0
    return PhaseReading(
        phase=phase,
        confidence=confidence,
        explanation=explanation,
        alpha_is_meaningful=is_meaningful,
        over_regularized=is_meaningful and _is_over_regularized(spectrum, bulk, phase),
    )


def _collapsed(spectrum: Spectrum, limits: PhaseThresholds) -> PhaseReading:
    """Return the phase of a spectrum with too many zeros: rank-collapse, or unclassified for a difference."""
    rank, count = spectrum.rank, spectrum.eigenvalues.size
    if spectrum.view == "difference":
        text = f"The change has rank {rank} of {count}: it is of low rank, or few rows have moved."
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, text)
    text = f"{count - rank} of {count} eigenvalues are zero: the rank has collapsed to {rank / count:.0%} of full."
    explanation = " ".join((text, *_remarks(spectrum, Phase.RANK_COLLAPSE)))
    return PhaseReading(Phase.RANK_COLLAPSE, min(1.0, to_other_rank(spectrum, limits)), explanation)


_NO_WEIGHTS = {
    "lora-delta": "An adapter of rank {}: phases are defined for whole weights.",
    "update": "The update since the last reading: phases are defined for weights.",
    "momentum": "The optimizer's momentum: phases are defined for weights.",
    "qk": "The product of q and k of each head: phases are defined for weights.",
    "ov": "The product of o and v of each head: phases are defined for weights.",
}
"""Explanations why views that are not weights have no phase; the rank of an adapter is filled in."""


def _refusal(spectrum: Spectrum, limits: PhaseThresholds) -> str:
    """Return the reason why a spectrum cannot have a phase, without any fit; empty if it may have one."""
    if spectrum.lambda_max == 0:
        return "All weights are zero."
    if spectrum.view in _NO_WEIGHTS:
        return _NO_WEIGHTS[spectrum.view].format(spectrum.m)
    dead = _dead_units(spectrum)
    if dead_share(spectrum) > limits.max_dead:
        return f"{dead} dead: too little of the layer is left."
    if spectrum.is_of_norms:
        return f"Its slices are {spectrum.n} × 1: each has one eigenvalue, which is its norm, and so no spectrum."
    is_small = spectrum.m < limits.min_m
    return f"M is below {limits.min_m}: too small to distinguish noise from structure." if is_small else ""


def _evidence(spectrum: Spectrum, bulk: Bulk, limits: PhaseThresholds) -> Evidence:
    fit = spectrum.power_law
    return Evidence(
        limits=limits,
        soft_rank=bulk.soft_rank,
        spikes=bulk.n_spikes,
        size=spectrum.eigenvalues.size,
        m=spectrum.m,
        share=bulk.spike_share,
        ks=bulk.ks,
        alpha=fit.alpha,
        tail_ks=fit.ks_distance * fit.n_tail**0.5,
        ratio=power_law_against_exponential(spectrum.eigenvalues, fit).ratio,
        n_tail=fit.n_tail,
        reach=spike_reach(spectrum.by_slice, spectrum.n, bulk),
        beside=bulk.n_beside(_BESIDE),
    )


def _alpha_is_meaningful(spectrum: Spectrum, e: Evidence, phase: Phase) -> bool:
    fit, limits = spectrum.power_law, e.limits
    return (
        phase in (Phase.BULK_SPIKES, Phase.BULK_DECAY, Phase.HEAVY_TAILED)
        and e.n_tail >= limits.min_n_tail
        # Where the whole spectrum is a power law, its tail may extend below any edge.
        and (phase is Phase.HEAVY_TAILED or e.spikes >= max(limits.min_spikes, limits.tail_spikes * e.n_tail))
        and e.tail_ks <= limits.heavy_ks
        and fit.ks_distance <= limits.max_ks_distance
        and fit.alpha_high - fit.alpha_low <= limits.max_alpha_range
    )


def _is_over_regularized(spectrum: Spectrum, bulk: Bulk, phase: Phase) -> bool:
    """Return whether a meaningful alpha is below 2 by more than its error, and its tail has left the bulk."""
    if _is_of_elements(spectrum):  # the tail is caused by a trap, not by correlations
        return False
    fit = spectrum.power_law
    if spectrum.scales_of_rest is not None and phase is Phase.BULK_SPIKES and fit.xmin < bulk.edge:
        return False  # the tail consists of a few spikes and of the end of noise of unequal scales
    has_left = has_left_bulk(phase, xmin=fit.xmin, edge=bulk.edge, soft_rank=bulk.soft_rank, share=bulk.spike_share)
    return has_left and fit.alpha_high + 2 * fit.alpha_stderr < CRITICAL and not _is_lighter_beyond(spectrum, bulk)


def _is_lighter_beyond(spectrum: Spectrum, bulk: Bulk) -> bool:
    """Return whether a tail that begins within the bulk is lighter than the critical one beyond its edge.

    Noise makes the part below the edge. Beyond it alpha is Hill's, 1 + n/Σ ln(λ/λ⁺), since the edge is known.
    """
    if not bulk.is_found or spectrum.power_law.xmin >= bulk.edge:
        return False
    beyond = spectrum.eigenvalues[spectrum.eigenvalues > bulk.edge] / bulk.edge
    return 1 + beyond.size / float(np.log(beyond).sum()) >= CRITICAL


def _is_of_scales(spectrum: Spectrum) -> bool:
    """Return whether alpha is below 2, and alpha of noise with the same row and column scales is below 2 as well."""
    if spectrum.power_law.alpha >= 2:
        return False
    return any(noise.power_law.alpha < 2 for noise in spectrum.noises_of_scales)


def _explain(phase: Phase, e: Evidence, spectrum: Spectrum, bulk: Bulk) -> str:
    noise = "that of noise with the same row and column scales" if bulk.is_scaled else "that of noise"
    nearly = (Phase.RANDOM_LIKE, Phase.BLEEDING_OUT, Phase.BULK_SPIKES)
    is_near = phase in nearly and e.ks > e.clean_ks_limit
    clean = f"nearly {noise} (KS {e.ks / e.m:.3f})" if is_near else f"{noise} (KS·M {e.ks:.1f})"
    tail = f"alpha {e.alpha:.2f} on {spectrum.power_law.n_tail} eigenvalues"
    if phase is Phase.RANDOM_LIKE:
        return f"No eigenvalue is above the bulk, and the bulk is {clean}.{_below_the_edge(spectrum, bulk)}"
    if e.spikes == 0:
        return f"No eigenvalue is above the bulk, yet the bulk is not random (KS·M {e.ks:.1f}): {_other_shape(bulk)}."
    if not e.has_bulk:
        is_heavy = phase is Phase.HEAVY_TAILED
        law = "is a power law" if is_heavy else f"is no power law below alpha {e.limits.heavy_alpha:g}"
        return f"No bulk of noise was found: {_why_no_bulk(e)}. The tail {law}: {tail}{_why_no_law(e)}."
    times = 1 / e.soft_rank if e.soft_rank > 0 else math.inf
    count = f"{e.spikes:.0f} eigenvalue{'' if e.spikes == 1 else 's'}"
    why = "more than a few" if e.spikes > e.few_spikes else f"but the bulk is not {clean}"
    rest = {
        Phase.BULK_SPIKES: f"; the bulk is {clean}",
        Phase.BLEEDING_OUT: f", none of them far; the bulk is {clean}",
        Phase.UNCLASSIFIED: f", none of them far, but the bulk is not {clean}",
        Phase.HEAVY_TAILED: f", as a power law: {tail}",
        Phase.BULK_DECAY: f", {why}; {tail}",
    }
    return f"λmax is {times:.3g} × the bulk edge; {count} too large for noise{rest[phase]}."


def _other_shape(bulk: Bulk) -> str:
    if bulk.is_scaled:
        return "noise does not explain it, neither with equal nor with the same row and column scales"
    return "orthogonal or rescaled weights look like this"


def _why_no_bulk(e: Evidence) -> str:
    if e.share > e.limits.max_spike_share:
        return f"{e.share:.0%} of the eigenvalues are above the best fit"
    return f"the lower part differs from noise (KS {e.ks / e.m:.2f})"


def _why_no_law(e: Evidence) -> str:
    return "" if e.accepts_power_law else f", D·√n {e.tail_ks:.2f}, ratio to an exponential {e.ratio:.1f}"


def _below_the_edge(spectrum: Spectrum, bulk: Bulk) -> str:
    """Return a remark that names the measures to use if unequal scales may hide structure."""
    if not bulk.is_scaled or spectrum.scales is None:
        return ""
    return (
        f" Their scales differ by {spectrum.scales.spread:.2f} dex, which can hide weaker structure: "
        "equalised_spikes counts it."
    )


def _remarks(spectrum: Spectrum, phase: Phase) -> list[str]:
    """Return remarks for the explanation of a phase: on traps and dead units."""
    remarks = []
    value = trap(spectrum)
    has_tail = phase is not Phase.RANK_COLLAPSE and spectrum.bulk is not None and spectrum.bulk.n_spikes > 0
    if has_tail and _is_of_elements(spectrum):
        remarks.append(
            f"In random order its elements would have this tail too: single ones are large (trap {value:.1f})."
        )
    elif value > 1 and phase in (Phase.BLEEDING_OUT, Phase.BULK_SPIKES, Phase.BULK_DECAY, Phase.HEAVY_TAILED):
        remarks.append(f"Single elements or the mean alone make a spike (trap {value:.1f}).")
    dead = _dead_units(spectrum)
    if dead:
        remarks.append(f"{dead} dead and left out.")
    return remarks


def _is_of_elements(spectrum: Spectrum) -> bool:
    return spectrum.scales is not None and spectrum.scales.are_of_elements


def _dead_units(spectrum: Spectrum) -> str:
    return "" if spectrum.elements is None else spectrum.elements.dead_units
