"""Rules on how weights move: by steps that surge, by replacement, and by decay."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median, median_low

from esdmon.alerts.rule import Finding, History, Peak, value_of
from esdmon.alerts.rules.change import is_below
from esdmon.alerts.rules.early import early_raises, learning_rate, weight_decay
from esdmon.alerts.rules.jumps import (
    RAISED,
    before_rise,
    finding,
    frobenius,
    jumps,
    raised,
    usual_decay,
    usual_rate,
)
from esdmon.records import LayerReport

SPREAD = 1.05
"""Factor of the stable rank from which the learned directions shrink more than the others; our choice."""
# So are all of these.
_DECAYING = 0.5  # of the length of a step: for a gradient without decay it is about 0, for decay alone 1
_SHRUNK = 1.1  # factor below its baseline from which a norm has shrunk, as in `norm_decay`
_SEEN = 4  # readings in which a norm has fallen more than once: those under test, and the one before
_FALLS = 0.02  # of the way from what was expected, in logarithms, by which a norm falls from reading to reading
_LULL = 0.1  # of the largest step ratio of the run, which the layer has withstood


def update_surge(history: History, *, factor: float = 4.0, peak: float = 1.5, back: float = 2.0) -> Iterable[Finding]:
    """Single steps move a layer several times as far as before.

    Fires when `step_ratio`, the ‖ΔW‖/‖W‖ of one optimizer step, is more than 4 times the value expected from its
    baseline, a line fitted to earlier readings of the layer, and more than five standard deviations of their scatter
    above that value. While a learning rate rises, slowly or at once, the line is fitted to the readings from before, if
    there are six or more.

    The usual cause is a raised learning rate, or larger gradients: from smaller batches, wrong labels, or inputs or a
    loss of another scale. The message says whether the learning rate or the gradients have grown, where the optimizer
    is known. Steps surge before ranks, phases and single elements show the fault, so this rule mutes the rules on them.

    Three harmless cases are left out. (1) A schedule with restarts: where the learning rate is not known, or was as
    high before, `step_ratio` must also be more than 1.5 times the largest of the run so far. (2) A layer that has
    almost stopped learning, whose gradients jump without harm: where the rate was not raised, `step_ratio` must be more
    than a tenth of the largest of the run. (3) A layer that has hardly learned yet, as an expert to which no token was
    routed before: where the rate was not raised, one of its steps must have reached a tenth of the median of the other
    layers' largest steps.

    Before there is a baseline, it fires if the learning rate was raised after two readings or more, and not by a
    warm-up that goes on, and `step_ratio` is since then more than 4 times its largest value before. The layer must have
    moved by 0.3 of its norm before, or by 0.02 of it in the step: some warm-ups raise the rate once in an epoch.

    Decay is left to `norm_decay`. A step is decay if it makes the weight shorter by half of the step's length or more.
    If the Frobenius norm is below 1/1.1 of all in the baseline, the rule fires only if the learning rate was raised: a
    weight that has shrunk has larger gradients, and the same step is a larger part of it.

    Adam and similar optimizers divide gradients by their size. With them the rule sees only a raised learning rate, and
    gradients that become more or less noisy.

    Not to be confused with: (1) A learning rate restarted by its schedule: neither the rate nor the step is larger than
    before in the run. (2) `norm_decay`: gradients grow until they balance a decay. (3) `layer_reset`: after it, the
    gradients of other layers grow too; it mutes this rule in all layers for five reports.

    The weights do not show whether batches, labels, inputs or the loss made the gradients grow, whether this was meant,
    as with a new task, or whether it passes, as a spike of the loss does after twenty steps of Adam.

    Resolved when `step_ratio` is below twice the expected value.

    Source: the ratio of update to weight is a common diagnostic of learning rates; the factors are ours.
    """
    baseline = {name: before_rise(readings[-1], history.baseline[name]) for name, readings in history.layers.items()}
    history = replace(history, baseline=baseline)
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
        what = f"one step moves the layer by {ratio:.2g} of its norm, over {factor:g} times the {before:.2g} expected"
        evidence = {"step_ratio": ratio, "learning_rate": rate, "before": before}
        yield Finding(now.name, f"{what}{_why_faster(rate, usual)}", evidence)
    yield from _surged_early(history, factor)


def _surged_early(history: History, factor: float) -> Iterable[Finding]:
    """Find layers without a baseline whose steps have grown since the learning rate was raised."""
    for found in early_raises(history, learning_rate):
        now, before = found.now, found.largest(_step_ratio)
        if now.step_ratio > factor * before and found.is_beyond_warm_up and not _is_shortened(now):
            what = (
                f"one step moves the layer by {now.step_ratio:.2g} of its norm, over {factor:g} times the {before:.2g}"
            )
            why = raised("learning rate", now.learning_rate, found.setting)
            evidence = {"step_ratio": now.step_ratio, "learning_rate": now.learning_rate, "before": before}
            yield Finding(now.name, f"{what} before{why}", evidence)


def _has_shrunk(now: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether the Frobenius norm is clearly below all of a baseline."""
    return frobenius(now) * _SHRUNK < min(map(frobenius, baseline), default=math.nan)


def _usual_of_others(history: History, name: str) -> float:
    """Return the median over the other layers of the largest step in their baselines; NaN if not known.

    Their last steps would not do: a fault in all layers makes them long in the layers that were not read now, too.
    """
    known = [peak.step_ratio for other, peak in history.peak.items() if other != name and peak.step_ratio > 0]
    return median_low(known) if known else math.nan


def _why_faster(rate: float, before: float) -> str:
    """Return the end of a message: whether the learning rate or the gradients have grown; empty if not known."""
    if rate <= RAISED * before:
        return f"; its learning rate is {rate:.2g} as before, so its gradients have grown"
    return raised("learning rate", rate, before)


def norm_decay(history: History, *, factor: float = 1.1, back: float = 1.05) -> Iterable[Finding]:
    """The weights of a layer shrink.

    Fires when the Frobenius norm is below 1/1.1 of the value expected from its baseline, a line fitted to earlier
    readings of the layer, and more than five standard deviations of their scatter below that value. The norm must also
    have fallen since the last reading, or twice within the last four readings.

    The usual cause is that something takes away more than the gradients restore: weight decay, another penalty on
    weights, or a script that scales weights after `step()`. The learned directions vanish last. Effective rank, alpha
    and single large elements change as a consequence, and gradients grow until they balance the decay, so the rules on
    them are muted. `scale_collapse` fires when a tenth of the norm is left.

    Before there is a baseline, it fires if the weight decay was raised after two readings or more, the norm is below
    1/1.1 of that of the last reading before, and it goes on falling.

    It does not fire if the stable rank rises meanwhile: the learned directions shrink first, so the layer unlearns
    something. It fires all the same if steps make the weight shorter rather than turn it, or if the norm is below 1/1.1
    of that of the first reading.

    It is only a notice (`info`) if the optimizer's weight decay is 0, no single step makes the weight shorter rather
    than turning it, and the median norm of the baseline is below that of the first reading. Then, as a rule, the
    initial weights were too large, and the loss itself makes them smaller. A script that scales weights may look the
    same.

    Not to be confused with: (1) A layer that unlearns, as with wrong labels: its stable rank rises. If its norm is
    below 1/1.1 of the first, it is reported as decay. (2) Initial weights that were too large: a notice, as described
    above. (3) An earlier checkpoint that was loaded: the norm falls once and does not go on falling.

    Resolved when the norm is above 1/1.05 of the expected value.

    Source: ours.
    """
    for now, norm, before in jumps(history, frobenius, "down", factor=factor, back=back):
        last, first = history.layers[now.name][-_SEEN:], history.first[now.name]
        baseline, is_shortened = history.baseline[now.name], any(map(_is_shortened, last))
        if now.name not in history.firing:
            norms = [frobenius(layer) for layer in last]
            falls = [was > is_now * (before / norm) ** _FALLS for was, is_now in pairwise(norms)]
            ranks = [rank for layer in baseline if (rank := value_of(layer, "stable_rank")) > 0]
            is_unlearning = bool(ranks) and value_of(now, "stable_rank") > SPREAD * median(ranks)
            is_decay = is_shortened or norm * factor < frobenius(first)
            if not (falls[-1:] == [True] or sum(falls) > 1) or (is_unlearning and not is_decay):
                continue
        what = is_below("Frobenius norm", norm, factor, before, "expected from its baseline")
        is_too_large = median([frobenius(layer) for layer in baseline] or [math.nan]) < frobenius(first)
        is_by_loss = now.weight_decay == 0 and not is_shortened and is_too_large
        yield finding(now, f"{what}{_why_smaller(now, baseline)}", before, "info" if is_by_loss else None)
    yield from _shrunk_early(history, factor)


def _shrunk_early(history: History, factor: float) -> Iterable[Finding]:
    """Find layers without a baseline whose norm falls since the weight decay was raised."""
    for found in early_raises(history, weight_decay):
        start = found.before[-1]
        *_, last, norm = map(frobenius, (start, *found.since))
        if norm * factor < frobenius(start) and norm < last:
            what = is_below("Frobenius norm", norm, factor, frobenius(start), f"at step {start.step}")
            why = raised("weight decay", found.now.weight_decay, found.setting)
            yield finding(found.now, f"{what}{why}", frobenius(start))


def _is_shortened(layer: LayerReport) -> bool:
    """Return whether a single step makes the weight shorter rather than turning it."""
    return -layer.step_growth > _DECAYING * layer.step_ratio


def _why_smaller(now: LayerReport, baseline: Sequence[LayerReport]) -> str:
    """Return the end of a message: the weight decay where it is known, and its earlier value if it was raised."""
    if now.weight_decay == 0:
        return "; the optimizer's weight decay is 0: the loss, a penalty in it, or the script itself makes it smaller"
    is_now = f"; its weight decay is {now.weight_decay:.2g}" if now.weight_decay > 0 else ""
    return raised("weight decay", now.weight_decay, usual_decay(baseline)) or is_now


def _step_ratio(layer: LayerReport) -> float:
    return layer.step_ratio
