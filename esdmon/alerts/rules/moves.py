"""Rules on how weights move: by steps that surge, by replacement, and by decay."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median, median_low

from esdmon.alerts.rule import Finding, History, Peak, has_moved, is_pruned, value_of
from esdmon.alerts.rules.baseline import WARM_UP
from esdmon.alerts.rules.change import is_noise_like
from esdmon.alerts.rules.jumps import RAISED, finding, frobenius, jumps, raised, usual_decay, usual_rate
from esdmon.records import LayerReport, Severity

# All of these are our choice.
_DECAYING = 0.5  # of the length of a step: for a gradient without decay it is about 0, for decay alone 1
_SHRUNK = 1.1  # factor below its baseline from which a norm has shrunk, as in `norm_decay`
_SEEN = 4  # readings in which a norm has fallen more than once: those under test, and the one before
_FALLS = 0.02  # of the way from what was expected, in logarithms, by which a norm falls from reading to reading
_SPREAD = 1.05  # factor of the stable rank from which the learned directions shrink more than the others
_REPLACED = 0.5  # ‖ΔW‖/‖W‖ above which a single step has replaced a weight, and not trained it
_OPPOSITE = 1.3  # times the square of the distance between independent weights, from which they are opposite
_BLOWN_UP = 3.0  # factor by which a norm has grown, as in `norm_explosion`
_LULL = 0.1  # of the largest step ratio of the run, which the layer has withstood


def update_surge(history: History, *, factor: float = 4.0, peak: float = 1.5, back: float = 2.0) -> Iterable[Finding]:
    """Single steps move a layer several times as far as before.

    Fires when ‖ΔW‖/‖W‖ of one optimizer step, `step_ratio`, is more than 4 times the value expected from the layer's
    baseline, and more than five standard deviations of its scatter away. The learning rate was raised, or the gradients
    have grown: by smaller batches, wrong labels, inputs or a loss of another scale. The message says which, where the
    optimizer is known. It comes before norms, ranks and elements show it, so it mutes those rules.

    Where the learning rate is not known, or was as high before, as in a schedule with restarts, the ratio must also be
    more than 1.5 times the largest of the run so far. Where it was not raised, the ratio must be more than a tenth of
    that: the gradients of a layer that has almost stopped learning jump without harm. So do those of a layer that has
    hardly learned yet, none of whose steps was a tenth of what the median of the other layers does, as an expert to
    which no token was routed before.

    Adam and its kin divide gradients by their size, so there only a raised learning rate is seen, and what makes
    gradients less or more noisy.

    Neither decay nor what follows from it is a surge: see `norm_decay`. A step that makes the weight shorter rather
    than turning it, by half of its length or more, is decay. Where the Frobenius norm is below 1/1.1 of all in the
    baseline, gradients have grown because the weight has shrunk, and the same step is a larger part of it: that is not
    a surge either, unless the learning rate was raised.

    Confused with a learning rate restarted by its schedule, where neither the rate nor the ratio is higher than any
    before; and with gradients that grow until they balance a decay, where steps make the weight shorter and the norm is
    below all of the baseline: that is `norm_decay`. Which of batches, labels, inputs and loss makes gradients grow, the
    weights do not show; nor whether that was meant, as a new task after the last was learned, or passes, as a spike of
    the loss for twenty steps of Adam. After `layer_reset` of one layer the gradients of others grow too: it mutes this
    rule in all layers for five reports.

    Resolved when it is below twice the expected value.

    Source: the ratio of update to weight is a common diagnostic of learning rates; the factors are ours.
    """
    for now, ratio, before in jumps(history, _step_ratio, "up", factor=factor, back=back):
        usual, highest = usual_rate(history.baseline[now.name]), history.peak.get(now.name, Peak())
        rate, is_raised = now.learning_rate, now.learning_rate > RAISED * usual
        is_dormant = not is_raised and highest.step_ratio < _LULL * _usual_of_others(history, now.name)
        is_restart = not rate <= RAISED * usual and not rate > RAISED * highest.learning_rate
        is_lull = not is_raised and ratio < _LULL * highest.step_ratio
        if now.name not in history.firing:
            if is_dormant or _is_shortened(now) or (not is_raised and _has_shrunk(now, history.baseline[now.name])):
                continue
            if (is_restart or is_lull) and not ratio > peak * highest.step_ratio:
                continue
        what = f"one step moves it by {ratio:.2g} of its norm, over {factor:g} times the {before:.2g} expected"
        evidence = {"step_ratio": ratio, "learning_rate": rate, "before": before}
        yield Finding(now.name, f"{what}{_why_faster(rate, usual)}", evidence)


def _has_shrunk(now: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether the Frobenius norm is clearly below all of a baseline."""
    return frobenius(now) * _SHRUNK < min(map(frobenius, baseline), default=math.nan)


def _usual_of_others(history: History, name: str) -> float:
    """Return the median over the other layers of the largest step in their baselines; NaN if not known.

    Not of their last steps: those of a fault in all layers are as long in the layers that were not read now.
    """
    known = [peak.step_ratio for other, peak in history.peak.items() if other != name and peak.step_ratio > 0]
    return median_low(known) if known else math.nan


def _why_faster(rate: float, before: float) -> str:
    """Return whether the learning rate or the gradients have grown, where that is known."""
    if rate <= RAISED * before:
        return f"; its learning rate is {rate:.2g} as before, so its gradients have grown"
    return raised("learning rate", rate, before)


def layer_reset(history: History, *, moved: float = 1.05, factor: float = 1.5, fall: float = 0.2) -> Iterable[Finding]:
    """The weights of a layer were replaced, not trained.

    Fires when a weight has moved by more than its norm since its last reading, and by more than its norm is now, as one
    that has nothing in common with the last; and by more than 1.5 times as far as so many steps could move it, each as
    long as the longest of its baseline and of the last two readings. It was initialised again, or a part of a
    checkpoint was not loaded. A weight of three times the norm or more moves as far by that alone; it is new if its
    stable rank is more than 0.7 of that of noise as well: what has blown up has few directions. A step that was sampled
    while the weight was replaced does not count as one of training.

    It also fires when the weight was set back to its start, or to a checkpoint from nearer to it: its distance from the
    start, `start_ratio`, has fallen by more than a fifth, and by more than 1.5 times the largest move from reading to
    reading in the last six readings of its baseline.

    Where all layers have moved farther than their steps could move them, it is a notice (`info`): another checkpoint
    was loaded. In those of three times the norm it is a warning: a checkpoint of this run would hardly have that.

    It fires at the first reading that shows it, since the next one moves by steps again.

    Confused with weights that blow up, which take long steps or come to few directions; this rule mutes
    `norm_explosion`. With weights that are scaled or set back to larger values, or replaced by trained ones of three
    times their norm: those it does not distinguish from weights that blow up. With another checkpoint that was loaded
    whole: all layers that move have moved farther than their steps reach, for which all of them are read where one
    jumps. With weights that are averaged: the distance from the start hardly falls. In a job of several ranks, or where
    the budget does not allow all readings at that step, a whole checkpoint may be reported as a warning in the layers
    that were read.

    Resolved when it moves by steps again.

    Source: ours.
    """
    found, jumped = [], 0
    for name, readings in history.layers.items():
        baseline, now = history.baseline[name], readings[-1]
        before = history.previous.get(name)
        ratios = [layer.step_ratio for layer in baseline if layer.step_ratio >= 0]
        usual = max((layer.update_ratio for layer in baseline[-WARM_UP:] if layer.update_ratio >= 0), default=math.inf)
        is_far = now.update_ratio > factor * usual
        if before is None or len(ratios) + (now.step_ratio >= 0) < WARM_UP:
            jumped += is_far  # its steps are not known, as of a weight that is computed
            continue
        since, count = before.step, now.step - before.step
        size, is_noise = frobenius(now) / frobenius(before), is_noise_like(now)
        is_unlike = _is_unlike(now.update_ratio, size, moved, is_noise=is_noise)
        usual_reach = count * max(ratios, default=0.0)
        last_step = 0.0 if before.step_ratio > _REPLACED else before.step_ratio  # not one that replaced the weight
        # A step that is sampled while a weight is replaced is as long as that.
        step_size = 1 + now.step_growth
        is_turned = now.step_ratio**2 > _OPPOSITE * (1 + step_size**2)  # by a step that was far too long
        is_in_step = _is_unlike(now.step_ratio, step_size, moved, is_noise=is_noise) and not is_turned
        reach = max(usual_reach, count * last_step, 0.0 if is_in_step else count * now.step_ratio)
        reach *= max(1.0, size)  # ratios are of the norm at each step, and the move is of that before all
        is_beyond = factor * reach < now.update_ratio < math.inf
        is_replaced = max(_REPLACED, factor * usual_reach) < now.update_ratio < math.inf
        way = min(layer.start_ratio for layer in (*baseline[-1:], before))
        is_back = way - now.start_ratio > max(fall * way, factor * usual)
        jumped += is_back or (is_far and (is_beyond or is_replaced))
        if is_beyond and is_unlike and not _has_blown_up(before, baseline):
            what = f"it has moved by {now.update_ratio:.2g} of its norm since step {since}, and its steps reach"
            evidence = {"update_ratio": now.update_ratio, "before": reach}
            severity: Severity | None = "warning" if size > _BLOWN_UP else None
            found.append(Finding(name, f"{what} {reach:.2g}", evidence, severity))
        elif is_back:
            what = (
                f"its distance from its start is {now.start_ratio:.2g} of its norm, down from {way:.2g} at step {since}"
            )
            found.append(Finding(name, what, {"start_ratio": now.start_ratio, "before": way}))
    is_whole = 1 < jumped == sum(has_moved(each) and not is_pruned(each) for each in history.report)
    yield from (replace(each, severity=each.severity or "info") if is_whole else each for each in found)


def _has_blown_up(layer: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether a weight was larger already than its baseline, as `norm_explosion` finds it."""
    norm, *before = (value_of(each, "spectral_norm") for each in (layer, *baseline))
    return norm > _BLOWN_UP * max(before, default=math.nan)


def _is_unlike(way: float, size: float, moved: float, *, is_noise: bool) -> bool:
    """Return whether a weight has nothing in common with an earlier one, by how far it has moved from that.

    Independent weights, of norms 1 and r, are √(1 + r²) apart. A weight that has grown to r by training has moved by at
    most √(r² − 1), if its steps are at right angles to it, and one that was scaled by r − 1; from r = 3 on a sample
    does not distinguish that from r. But what has grown so by training has few directions, and noise has all.

    Args:
        way: how far it has moved.
        size: r.
        moved: factor by which both norms must be exceeded.
        is_noise: whether its spectrum is that of noise.
    """
    is_apart = way > moved * size and size <= _BLOWN_UP  # a larger one is so only where it was turned round
    return way > moved and (is_apart or (is_noise and way * moved > size))


def norm_decay(history: History, *, factor: float = 1.1, back: float = 1.05) -> Iterable[Finding]:
    """The weights of a layer shrink.

    Fires when the Frobenius norm is below 1/1.1 of the value expected from the layer's baseline, more than five
    standard deviations of its scatter away, and has fallen from reading to reading, more than once. Weight decay,
    another penalty on weights, or a script that scales weights itself after `step()` takes away more than the gradients
    restore. The learned directions vanish last, so effective rank, alpha and single large elements change as a
    consequence, and those rules are muted; `scale_collapse` says when a tenth is left. Gradients grow until they
    balance the decay, which is not a surge.

    Where the stable rank rises meanwhile, the learned directions shrink first: the layer unlearns something, and its
    weights do not decay. It is decay all the same where a step makes the weight shorter rather than turning it, or the
    norm is below 1/1.1 of that of the first reading.

    Where the optimizer's weight decay is 0, no single step makes the weight shorter so, and the median norm of the
    baseline is below that of the first reading, it is a notice (`info`): the initial weights were too large, as a rule,
    and the loss itself makes them smaller. A script that scales weights itself may look the same.

    Confused with a layer that unlearns, as with wrong labels, which the stable rank distinguishes, but where the norm
    is below the first it is reported as decay; with initial weights that were too large, where the weight decay is 0
    and the norm has been below the first all along; and with an earlier checkpoint that was loaded, after which the
    norm does not go on falling from reading to reading.

    Resolved when the norm is above 1/1.05 of that value.

    Source: ours.
    """
    for now, norm, before in jumps(history, frobenius, "down", factor=factor, back=back):
        last, first = history.layers[now.name][-_SEEN:], history.first[now.name]
        baseline, is_shortened = history.baseline[now.name], any(map(_is_shortened, last))
        if now.name not in history.firing:
            norms = [frobenius(layer) for layer in last]
            falls = [was > is_now * (before / norm) ** _FALLS for was, is_now in pairwise(norms)]
            ranks = [rank for layer in baseline if (rank := value_of(layer, "stable_rank")) > 0]
            is_unlearning = bool(ranks) and value_of(now, "stable_rank") > _SPREAD * median(ranks)
            is_decay = is_shortened or norm * factor < frobenius(first)
            if not (falls[-1:] == [True] or sum(falls) > 1) or (is_unlearning and not is_decay):
                continue
        what = f"Frobenius norm {norm:.3g} is below 1/{factor:g} of the {before:.3g} expected from its baseline"
        is_too_large = median([frobenius(layer) for layer in baseline] or [math.nan]) < frobenius(first)
        is_by_loss = now.weight_decay == 0 and not is_shortened and is_too_large
        yield finding(now, f"{what}{_why_smaller(now, baseline)}", before, "info" if is_by_loss else None)


def _is_shortened(layer: LayerReport) -> bool:
    """Return whether a single step makes the weight shorter rather than turning it."""
    return -layer.step_growth > _DECAYING * layer.step_ratio


def _why_smaller(now: LayerReport, baseline: Sequence[LayerReport]) -> str:
    """Return the weight decay, where it is known, and from what it was raised."""
    if now.weight_decay == 0:
        return "; the optimizer's weight decay is 0: the loss, a penalty in it, or the script itself makes it smaller"
    is_now = f"; its weight decay is {now.weight_decay:.2g}" if now.weight_decay > 0 else ""
    return raised("weight decay", now.weight_decay, usual_decay(baseline)) or is_now


def _step_ratio(layer: LayerReport) -> float:
    return layer.step_ratio
