"""Rules on change: a layer against its own baseline, or against the first reading of the run."""

import math
from collections.abc import Iterable, Sequence
from statistics import median, median_low

from esdmon.alerts.rule import Finding, History, evidence_of, has_moved, is_pruned, value_of
from esdmon.alerts.rules.early import early_raises, is_early, learning_rate, readings_since_first
from esdmon.alerts.rules.jumps import (
    finding,
    frobenius,
    jumped,
    jumps_after_warm_up,
    raised,
    raised_rate,
)
from esdmon.records import LayerReport
from esdmon.records.values import significant
from esdmon.spectrum import Phase

BLOWN_UP = 10.0
"""‖ΔW‖/‖W‖ from the start to the first reading above which a weight has blown up. Our choice: in 65
healthy trainings it was below 1, except for weights that start at zero, where it is infinite."""
NOISE_LIKE = 0.7
"""Stable rank over that of noise, above which a layer has not begun to learn. When it begins, its stable rank
drops. Set on healthy trainings (tests/benchmarks/false_alarms.py): in one in ten a layer does so."""
_SINGLE = 1.1  # stable rank up to which a weight has one direction; our choice
_OUTSIDE = (Phase.UNCLASSIFIED, Phase.RANK_COLLAPSE)  # not part of the order of the phases
_HALVED = 2.0  # factor by which an effective rank has fallen, as in `entropy_collapse`
_FEW = 64  # eigenvalues below which a rank says little about directions; our choice


def norm_explosion(history: History, *, factor: float = 3.0, back: float = 2.0) -> Iterable[Finding]:
    """The weights of a layer blow up.

    Fires when the spectral norm is more than 3 times the value expected from its baseline, more than five standard
    deviations above that value, and more than 3 times its first reading. The baseline is a line fitted to earlier
    readings of the layer, with their scatter.

    It also fires when a weight blew up before there was a baseline, in two cases. (1) Before one of its readings it
    moved by more than 10 times its norm, and its spectral norm is still more than twice that of before. (2) The
    learning rate was raised after two readings or more, and not by a warm-up that goes on; since then the spectral norm
    is more than 3 times its largest value before, and the weight has moved by more than 3 times its norm from one
    reading to the next. Weights that start at zero are left out, since they soon outgrow their first values.

    The usual cause is a learning rate that is far too high. The alert often comes before the loss rises or turns NaN.
    The second reading confirms the finding also if the weight has not moved since the first: one step may blow up all
    weights and leave all units dead.

    It does not fire during a warm-up in which the layer has hardly learned yet. A warm-up means here: the learning rate
    is over four times its median in the baseline; it has risen since by no larger a factor than within the baseline;
    and the median `start_ratio` of the baseline (distance from the start) is below a half. Examples are an exponential
    warm-up, and `lr·d` of D-Adaptation and Prodigy where the growth of `d` is limited. A linear warm-up reaches 2.6
    times the median.

    Not to be confused with: (1) `update_surge`: steps are longer, but the weight is not larger yet. (2) `layer_reset`:
    the weight was initialised again with larger values; it is noise, and the steps do not explain the change. (3)
    Weights that grow as they learn, or from near zero: steady growth is part of the baseline. (4) `entropy_collapse` or
    `norm_decay`: one direction grows at the cost of the others, as when rows are drawn to one point. They are reported
    instead where the effective rank has halved and ‖W‖_F² has grown by less than half as much as σ₁² since the median
    of the baseline.

    The rule cannot distinguish a run that leaves a plateau in mid-run: its first directions grow as fast.

    Resolved when the spectral norm is below twice the expected value.

    Source: it is textbook knowledge that weights grow without bound where gradient descent is unstable; the factors are
    ours.
    """
    for now, norm, before in jumps_after_warm_up(history, _norm, "up", factor=factor, back=back):
        has_grown = now.status == "ok" and not is_pruned(now) and norm > factor * _norm(history.first[now.name])
        if now.name in history.firing or (
            has_grown and not (_is_at_cost_of_others(now, history.baseline[now.name]) and is_flat(history, now.name))
        ):
            what = is_over("spectral norm", norm, factor, before, "expected from its baseline")
            yield finding(now, f"{what}{raised_rate(now, history.baseline[now.name])}", before)
    for found in early_raises(history, learning_rate):
        norm, before = _norm(found.now), found.largest(_norm)
        has_moved_far = any(layer.update_ratio > factor for layer in found.since)
        if norm > factor * before and has_moved_far and history.first[found.now.name].update_ratio < math.inf:
            what = is_over("spectral norm", norm, factor, before, "before the raise")
            yield finding(found.now, f"{what}{raised('learning rate', found.now.learning_rate, found.setting)}", before)
    for name, readings in history.layers.items():
        now, blown_up = readings[-1], _blown_up_early(history, name)
        if name not in history.firing and has_moved(now) and blown_up is not None:
            before = _norm(blown_up) / (1 + blown_up.update_ratio)
            if _norm(now) > back * before:
                grown = f"spectral norm {significant(_norm(now))}, up from about {significant(before)}"
                yield finding(now, f"{grown} before step {blown_up.step}", before)


def _blown_up_early(history: History, name: str) -> LayerReport | None:
    """Return the reading before which a weight blew up that has no baseline yet; None if there is none.

    Weights that start at zero are left out: their first values are small, and soon outgrown.
    """
    first = history.first[name]
    is_checked = is_early(history, name) and first.update_ratio < math.inf
    readings = readings_since_first(history, name) if is_checked else ()
    return next((layer for layer in (first, *readings) if BLOWN_UP < layer.update_ratio < math.inf), None)


def scale_collapse(history: History, *, factor: float = 10.0, back: float = 5.0) -> Iterable[Finding]:
    """The weights of a layer have almost vanished.

    Fires when the Frobenius norm is less than a tenth of its value at the first reading of the run.

    The usual cause is a weight decay that is too strong for the learning rate: it shrinks the weights until they carry
    no signal. In a network with normalisation layers the loss may not show this.

    It is only a notice (`info`) for a difference from a reference and for what an adapter adds: these start at zero,
    and do so again where an adapter is merged into its base and begun again, as in ReLoRA.

    Not to be confused with: (1) `norm_decay`, which finds the same fault earlier. (2) Initial weights that were too
    large: this rule does not distinguish them, but `norm_decay` does, by a weight decay of 0.

    Resolved when the norm is above a fifth of its first value.

    Source: the name is that of C. H. Martin, T. Peng, M. W. Mahoney, Nature Communications 12 (2021) 4122, who see the
    collapse in λmax. The whole norm shows it earlier, because the learned directions vanish last. The factors are ours.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        norm, before = frobenius(now), frobenius(first)
        if norm * (back if name in history.firing else factor) < before:
            what = is_below("Frobenius norm", norm, factor, before, f"at step {first.step}")
            yield finding(now, what, before, None if now.is_weight else "info")


def entropy_collapse(history: History, *, factor: float = _HALVED, back: float = 1.5) -> Iterable[Finding]:
    """A layer uses far fewer directions than before.

    Fires when the effective rank is less than half of the value expected from its baseline, a line fitted to earlier
    readings of the layer, and more than five standard deviations of their scatter below that value. The effective rank
    is M^S, with M the number of eigenvalues and S the matrix entropy. Layers with fewer than 64 eigenvalues are not
    checked.

    The rows of an embedding that are all drawn to one point look like this, and so does a layer that a single direction
    dominates.

    It does not fire during a warm-up of the learning rate, as defined in `norm_explosion`.

    Not to be confused with: (1) `norm_decay`: decay takes the weak directions first, and the norm falls; it mutes this
    rule. (2) `rank_collapse`: eigenvalues are zero. (3) `stable_rank_drop`: one direction grows while the others stay,
    and the effective rank falls by less.

    The rule cannot distinguish a run that leaves a plateau in mid-run: its first directions then dominate.

    Resolved when the effective rank is above two thirds of the expected value.

    Source: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007); the factors
    are ours.
    """
    for now, rank, before in jumps_after_warm_up(history, _effective_rank, "down", factor=factor, back=back):
        what = is_below("effective rank", rank, factor, before, "expected from its baseline")
        yield finding(now, f"{what}{raised_rate(now, history.baseline[now.name])}", before)


def stable_rank_drop(history: History, *, factor: float = 2.0, back: float = 1.5) -> Iterable[Finding]:
    """One direction of a layer has grown far above the others.

    Fires when the stable rank Σλ/λmax is less than half of the value expected from its baseline, a line fitted to
    earlier readings of the layer, and more than five standard deviations of their scatter below that value. The
    baseline includes the slow decline of a healthy training. Layers with fewer than 64 eigenvalues are not checked.

    The usual cause is a loss spike, a bad batch or a raised learning rate.

    It does not fire during a warm-up of the learning rate, as defined in `norm_explosion`, nor where the expected
    value, or the median of the baseline, is above 0.7 of the value for noise: the first spike of such a layer is the
    start of learning, and may grow for a thousand steps.

    Not to be confused with: (1) `norm_explosion`: the weights blow up, and their norm grows. (2) `correlation_trap`: a
    mean that is not zero is one direction too. Both rules mute this one.

    Resolved when the stable rank is above two thirds of the expected value.

    Source: the measure is that of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the factors are ours.
    """
    for now, rank, before in jumps_after_warm_up(history, _stable_rank, "down", factor=factor, back=back):
        usual = before if now.name in history.firing else _usual_stable_rank(history.baseline[now.name])
        if max(before, usual) > NOISE_LIKE * now.nulls.get("stable_rank", math.inf):
            continue
        what = is_below("stable rank", rank, factor, before, "expected from its baseline")
        yield finding(now, f"{what}{raised_rate(now, history.baseline[now.name])}", before)


def phase_regression(history: History, *, phases: int = 2, factor: float = 1.5) -> Iterable[Finding]:
    """A layer has gone back towards noise.

    Fires when (1) the phase is two or more before the median phase of the layer's baseline, in the order random-like,
    bleeding-out, bulk+spikes, bulk-decay, heavy-tailed; (2) the MP soft rank, which is 1 for noise, is more than 1.5
    times the value expected from the baseline, and more than five standard deviations above that value; (3) the stable
    rank is not below the baseline's median; and (4) a layer that is now random-like has a stable rank of more than 0.7
    of that of noise with equal scales.

    The layer has lost what it learned. Usual causes: it was initialised again by mistake, part of a checkpoint was not
    loaded, or noise exceeds the gradient.

    Conditions 3 and 4 exclude layers in which a few rows or columns grow large. Noise with such scales has larger
    eigenvalues, so that spikes no longer count as spikes, and the phase goes back without a loss; but the stable rank
    falls.

    Not to be confused with: (1) `layer_reset`: the layer was replaced, which its distances show at once. (2) A layer on
    a border between phases, which changes by one phase, or a spike that fades slowly: conditions 1 and 2 exclude both.
    (3) `update_surge`: wrong labels, or a learning rate that is too high. Steps surge first, and it mutes this rule.

    Resolved when the phase is at most one before the median phase of the baseline, or unclassified, or rank-collapse.

    Source: the order and the soft rank are those of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the distances are
    ours.
    """
    found = dict.fromkeys(history.firing, 0.0) | jumped(history, _soft_rank, "up", factor)
    for name in found.keys() & history.layers.keys():
        now = history.layers[name][-1]
        has_fallen = _stable_rank(now) < _usual_stable_rank(history.baseline[name])
        is_of_scales = now.phase is Phase.RANDOM_LIKE and not is_noise_like(now)
        if name not in history.firing and (has_fallen or is_of_scales):
            continue
        codes = [layer.phase.code for layer in history.baseline[name] if layer.phase not in _OUTSIDE]
        usual = int(history.firing[name]["before"]) if name in history.firing else median_low(codes or [0])
        if now.phase not in _OUTSIDE and now.phase.code <= usual - phases:
            phase = next(phase.value for phase in Phase if phase.code == usual)
            what = f"phase {now.phase.value} (confidence {now.phase_confidence:.1f}), down from {phase} in its baseline"
            yield Finding(name, what, evidence_of(now, "mp_soft_rank", "n_spikes") | {"before": float(usual)})


def is_noise_like(layer: LayerReport) -> bool:
    """Return whether the stable rank is that of noise, as of an initialisation.

    If one element is huge, noise with the scales of its row and column has a single direction, too.
    """
    rank = value_of(layer, "stable_rank")
    return rank > max(_SINGLE, NOISE_LIKE * layer.nulls.get("stable_rank", math.inf))


def _soft_rank(layer: LayerReport) -> float:
    return value_of(layer, "mp_soft_rank")


def _norm(layer: LayerReport) -> float:
    return value_of(layer, "spectral_norm")


def is_flat(history: History, name: str) -> bool:
    """Return whether the effective rank of a layer has halved; used only where another rule finds a jump."""
    return name in jumped(history, _effective_rank, "down", _HALVED)


def _is_at_cost_of_others(now: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether σ₁ has grown while other directions shrank: ‖W‖_F² has grown by less than half as much as σ₁²."""
    whole, first = (of(now) ** 2 - median(of(layer) ** 2 for layer in baseline) for of in (frobenius, _norm))
    return whole < first / 2


def _stable_rank(layer: LayerReport) -> float:
    return value_of(layer, "stable_rank") if layer.n_eigenvalues >= _FEW else math.nan


def _usual_stable_rank(baseline: Sequence[LayerReport]) -> float:
    """Return the median stable rank of a baseline; NaN where it is not known."""
    ranks = [rank for rank in map(_stable_rank, baseline) if not math.isnan(rank)]
    return median(ranks) if ranks else math.nan


def _effective_rank(layer: LayerReport) -> float:
    entropy = value_of(layer, "matrix_entropy")
    return float(layer.n_eigenvalues**entropy) if layer.n_eigenvalues >= _FEW else math.nan


def is_over(what: str, value: float, factor: float, before: float, source: str) -> str:
    """Return that a value has risen: `spectral norm 31 is over 3 times the 9.2 expected from its baseline`."""
    return f"{what} {significant(value)} is over {factor:g} times the {significant(before)} {source}"


def is_below(what: str, value: float, factor: float, before: float, source: str) -> str:
    """Return that a value has fallen: `stable rank 3.1 is below 50% of the 9.2 expected from its baseline`."""
    return f"{what} {significant(value)} is below {1 / factor:.0%} of the {significant(before)} {source}"
