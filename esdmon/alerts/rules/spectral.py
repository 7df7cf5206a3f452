"""Rules on the shape of a spectrum: tails that are too heavy, lost rank, and adapters stronger than their base."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

from esdmon.alerts.rule import Finding, History, evidence_of, value_of, values_of
from esdmon.alerts.rules.jumps import frobenius, is_warming_up
from esdmon.records import LayerReport
from esdmon.records.adapters import base_of
from esdmon.spectrum import Phase
from esdmon.spectrum.phases import CRITICAL, has_left_bulk

# All of these are our choice.
_SHRINKING = 0.15  # of its norm that a layer loses, in all and in each doubling of the steps
_MOVING = 0.15  # ‖ΔW‖/‖W‖ in 100 steps above which a layer goes on moving
_SEEN = 3  # moves between scheduled readings whose median counts
_STEPS = 100  # in which a move is given
_FAR = 0.7  # ‖ΔW‖/‖W‖ that a layer would reach at this rate in as many steps as the run has had
_RISEN = 1.01  # factor between the learning rates of the first and the last of 16 readings, above which it has risen
_STEADY = 0.999  # of the square of the middle one of three rates, from which they rise by one factor
_BACK = 0.8  # of the limit, below which an adapter's alert ends
_LOST = 0.98  # share of the first rank below which rank was lost, beyond the scatter of the zero tolerance


def over_regularized(
    history: History, *, alpha: float = 2.0, erg_ratio: float = 0.5, back: float = 2.1
) -> Iterable[Finding]:
    """The tail of a layer's spectrum is heavier than the critical one.

    Fires when alpha is meaningful (`alpha_is_meaningful`) and below 2 by more than its uncertainty: `alpha_high`, the
    largest alpha among fits that are nearly as good, plus two standard errors is below 2. A fit within the bulk
    describes noise, so one of these must hold too: the tail begins above the edge of the bulk, it goes on for a decade
    beyond the edge, or the layer is heavy-tailed. It does not fire where the part of the tail beyond the edge has a
    Hill alpha of 2 or more, where single large elements make the tail, or where a few spikes and noise of unequal rows
    make it (`LayerReport.over_regularized`).

    Such a layer holds few, very strong correlations. It begins to describe the training examples rather than what they
    have in common, and test accuracy falls, often long before the training loss shows it. Usual causes are tiny
    batches, a learning rate that is too large for them, and too much regularisation.

    It is a warning only if the ERG tail and a cause in the weights both confirm it; otherwise it is a notice (`info`).

    The ERG tail consists of the largest eigenvalues whose product is one. At the ideal alpha of 2 the power law begins
    where the ERG tail begins. The ERG tail confirms the alert if the power law begins at less than half of that
    eigenvalue. Healthy recurrent layers and layers trained with Muon reach an alpha of 1.65, but at a ratio of 0.7 or
    more.

    The weights show one of two causes. (1) Decay: the Frobenius norm has fallen by 15 % in all, and by more than 15 %
    for each doubling of the steps, and is below that of the first reading. A layer that has grown at a high learning
    rate shrinks again without harm. (2) Motion, as by the noise of tiny batches or of a learning rate that is too
    large: the layer moves by more than 15 % of its norm in 100 steps, and at this rate by 70 % in as many steps as the
    run has had. What counts is the median of the last three moves between scheduled readings. Moves do not count where
    the learning rate has risen by ever smaller factors in the last 16 readings, as in a linear warm-up and in one
    cycle, nor during a warm-up as defined in `norm_explosion`, since they were shorter before; nor if the layer slows
    down: each move is shorter than the one before, and the last less than half as long as the first. Small networks
    (M = 64 to 256) that have learned all of their data reach an alpha of 1.5 to 1.8, hardly move, and are right on
    held-back examples.

    It is always a notice for a weight that is computed from parameters, as by `spectral_norm`: its norm is held, so
    learning can only turn it, and the estimate of the norm makes it fluctuate. So neither cause counts there.

    Not checked are layers whose alpha was below 2 at the first reading, such as pretrained layers and weights that
    start at zero, which consist of a few gradients at first; nor differences from a reference.

    Not to be confused with: (1) `norm_decay`: decay leaves few directions, and the norm falls; it mutes this rule, as
    does `scale_collapse`: what a layer learns after its weights have vanished is a few large directions. (2)
    `rank_collapse`: the few eigenvalues that are left can give any alpha; it mutes this rule. (3) Healthy layers with a
    heavy tail, such as recurrent layers and layers trained with Muon: the ERG tail does not confirm the alert.

    The alert does not mean that accuracy falls: in `tests/benchmarks/unseen.py` it fell in none of six runs, up to 780
    steps later. If the validation loss still falls, wait.

    Resolved when alpha is above 2.1, or the phase is random-like or bleeding-out.

    Source: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025); the half is ours.
    """
    for name, readings in history.layers.items():
        now = readings[-1]
        value, high, stderr = values_of(now, "alpha", "alpha_high", "alpha_stderr")
        xmin, edge, soft_rank, spikes = values_of(now, "xmin", "bulk_edge", "mp_soft_rank", "n_spikes")
        if not now.is_weight or value_of(history.first[name], "alpha") < alpha:
            continue
        if name in history.firing:
            # Without a meaningful tail there is no evidence that it has recovered, so the alert goes on.
            wrong = value < back and now.phase not in (Phase.RANDOM_LIKE, Phase.BLEEDING_OUT)
        else:
            has_left = now.over_regularized or (
                alpha > CRITICAL
                and has_left_bulk(
                    now.phase, xmin=xmin, edge=edge, soft_rank=soft_rank, share=spikes / now.n_eigenvalues
                )
            )
            wrong = now.alpha_is_meaningful and has_left and high + 2 * stderr < alpha
        if wrong:
            ratio = _erg_ratio(now)
            agrees, cause = ratio < erg_ratio, _cause(name, history)
            yield Finding(
                name,
                f"alpha {value:.2f} (at most {high:.2f} ± {stderr:.2f}) is below {alpha:g}; "
                f"{cause or 'the layer neither shrinks nor moves far, and may be healthy'}; a second criterion, the "
                f"ERG tail of SETOL, {'confirms' if agrees else 'does not confirm'} this (ratio {ratio:.2g})",
                evidence_of(now, "alpha", "alpha_high", "alpha_stderr", "n_tail", "ks_distance", "erg_gap"),
                None if agrees and cause else "info",
            )


def _cause(name: str, history: History) -> str:
    """Return the cause of over-regularisation that the weights of a layer show; empty if they show none."""
    readings = history.layers[name]
    now = readings[-1]
    if now.computed:
        return ""
    falls = {_fall(was, now): was for was in (history.first[name], *history.baseline[name], *readings[:-1])}
    fall = max(falls)
    if fall > _SHRINKING and frobenius(now) < frobenius(history.first[name]):
        share = frobenius(now) / frobenius(falls[fall])
        return f"the layer's norm has fallen to {share:.2f} of that at step {falls[fall].step}"
    scheduled = [layer for layer in readings if not layer.extra]  # between extra readings a layer goes to and fro
    seen = scheduled[-_SEEN - 1 :]
    if len(seen) <= _SEEN or _is_levelling_off(scheduled) or is_warming_up(now, history.baseline[name]):
        return ""  # how far it goes on to move is not known yet
    moves = [
        layer.update_ratio * math.sqrt(_STEPS / (layer.step - was.step))  # as noise moves it
        for was, layer in pairwise(seen)
    ]
    moved = median(moves)
    first, second, last = moves
    is_slowing = first > second > last and last < first / 2
    is_far = moved * math.sqrt(now.step / _STEPS) > _FAR and not is_slowing
    return f"the layer moves by {moved:.0%} of its norm in {_STEPS} steps" if moved > _MOVING and is_far else ""


def _is_levelling_off(readings: Sequence[LayerReport]) -> bool:
    """Return whether the learning rate has risen by ever smaller factors, as in a linear warm-up and in one cycle."""
    before, then, now = (readings[k].learning_rate for k in (0, len(readings) // 2, -1))
    return now > _RISEN * before and now * before < _STEADY * then**2


def _fall(was: LayerReport, now: LayerReport) -> float:
    """Return the share of the norm that is lost in each doubling of the steps; 0 where less than 15 % is."""
    share = frobenius(now) / frobenius(was)
    if not (share < 1 - _SHRINKING and 0 < was.step < now.step):
        return 0.0
    return float(1 - share ** (1 / math.log2(now.step / was.step)))


def rank_collapse(history: History, *, back: float = 0.97) -> Iterable[Finding]:
    """Some eigenvalues of a layer are zero: the sixth of the 5+1 phases.

    Fires when the phase is rank-collapse: more than 5 % of the eigenvalues are numerically zero, with a gap between
    them and the rest. The layer has lost directions for good. The usual cause is weight decay that is far too strong.

    It is only a notice (`info`) if the layer was collapsed at the first reading of the run and has lost no more rank
    since: it may have been loaded in this state. If its rank has risen since, there is no alert: weights that start at
    zero gain rank in this way.

    Not to be confused with: (1) `norm_decay` and `scale_collapse`: decay shrinks all directions alike, and the rank
    stays. (2) `entropy_collapse`: few strong directions stand over many weak ones. (3) `dead_units`: zero rows and
    columns are left out of the spectrum before the rank is counted.

    Resolved when the rank is at least 97 % of the number of eigenvalues.

    Source: C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the limits are in `PhaseThresholds`.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        rank, before = value_of(now, "hard_rank"), value_of(first, "hard_rank")
        began_so = first.phase is Phase.RANK_COLLAPSE
        if name in history.firing:
            wrong = rank < back * now.n_eigenvalues
        else:
            wrong = now.phase is Phase.RANK_COLLAPSE and not (began_so and rank > before)
        if wrong:
            share = rank / now.n_eigenvalues
            yield Finding(
                name,
                f"rank {rank:.0f} of {now.n_eigenvalues} ({share:.0%}), from {before:.0f} at step {first.step}",
                evidence_of(now, "hard_rank", "stable_rank", "matrix_entropy"),
                "info" if began_so and rank > _LOST * before else None,
            )


def adapter_growth(history: History, *, limit: float = 1.0) -> Iterable[Finding]:
    """An adapter outweighs the layer that it adapts.

    Fires when ‖ΔW‖₂/‖W‖₂ is above 1 in three readings: the strongest direction of the adapter's ΔW is stronger than any
    direction of its base W. The first direction of the sum then comes from fine-tuning, not from what the base has
    learned. Such adapters fit their training data, and forget the rest.

    Usual causes are a learning rate or a scale (`lora_alpha`) that is too large, and training for too long.

    It is always a notice (`info`), because healthy small networks that are fine-tuned for another task pass 1 too. The
    rule cannot distinguish these. Adapters of convolutions, and of layers that are not read as one matrix, have no such
    ratio and are not checked.

    Not to be confused with: an adapter of a base that is random-like, which is not checked: the base has learned
    nothing that an adapter could outweigh.

    Resolved when the ratio is at most 0.8 of the limit.

    Source: R. Shuttleworth and others, "LoRA vs full fine-tuning: an illusion of equivalence" (2024)
    (https://arxiv.org/abs/2410.21228) on such directions and on forgetting; the limit is ours.
    """
    untrained = {layer.name for layer in history.report if layer.phase is Phase.RANDOM_LIKE}
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        ratio, before = value_of(now, "base_ratio"), value_of(first, "base_ratio")
        if base_of(name) not in untrained and ratio > (_BACK if name in history.firing else 1.0) * limit:
            yield Finding(
                name,
                f"‖ΔW‖₂/‖W‖₂ is {ratio:.2g}, above {limit:g}, from {before:.2g} at step {first.step}",
                evidence_of(now, "base_ratio", "rank_use", "spectral_norm"),
            )


def _erg_ratio(layer: LayerReport) -> float:
    """Return the start of the power law over the start of the ERG tail, both at mean λ = 1."""
    xmin, gap, norm = values_of(layer, "xmin", "erg_gap", "frobenius_norm")
    begins = xmin * layer.N * layer.n_eigenvalues / norm**2 if norm > 0 else math.nan
    return begins / (begins - gap) if begins > gap else math.nan
