"""The rule on weights that are replaced: begun again, or loaded from elsewhere."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from esdmon.alerts.rule import Finding, History, has_moved, is_pruned, value_of
from esdmon.alerts.rules.baseline import WARM_UP
from esdmon.alerts.rules.change import is_noise_like
from esdmon.alerts.rules.early import find_raise, learning_rate, readings_since_first
from esdmon.alerts.rules.jumps import frobenius
from esdmon.alerts.rules.moves import SPREAD
from esdmon.records import LayerReport, Severity
from esdmon.records.values import significant

# All of these are our choice.
_REPLACED = 0.5  # ‖ΔW‖/‖W‖ above which a single step has replaced a weight, and not trained it
_OPPOSITE = 1.3  # times the square of the distance between independent weights, from which they are opposite
_BLOWN_UP = 3.0  # factor by which a norm has grown, as in `norm_explosion`
_KNOWN_MOVES = 2  # moves between readings before one can be found too far


def layer_reset(history: History, *, moved: float = 1.05, factor: float = 1.5, fall: float = 0.2) -> Iterable[Finding]:
    """The weights of a layer were replaced, not trained.

    Fires when both hold: (1) since the last reading, the weight has moved by more than its old norm, and by more than
    its new norm, as if it had nothing in common with the old weight; (2) it has moved more than 1.5 times as far as its
    steps since then could move it, each as long as the longest step of its baseline and its last two readings. A step
    that was sampled while the weight was replaced does not count. Layers with fewer than six sampled steps must also
    have moved more than 1.5 times as far as between any two readings before, of which there must be two or more moves,
    and their stable rank must have risen. One reading suffices, since the weight moves by ordinary steps again at the
    next.

    A weight that is now three times as large or more, or whose spectral norm is more than three times that of its whole
    baseline, has moved as far by growth alone. It counts as replaced only if its stable rank is also more than 0.7 of
    that of noise: weights that blow up have few directions.

    It also fires when the weight was set back to its start, or to a checkpoint nearer to the start: `start_ratio`, the
    distance from the start, has fallen by more than a fifth, and by more than 1.5 times the largest move between
    readings in the last six readings of the baseline.

    The usual cause is that the layer was initialised again, or that part of a checkpoint was not loaded.

    It is only a notice (`info`) if all layers have moved farther than their steps reach: another checkpoint was loaded.
    Layers that are three times as large stay a warning: a checkpoint of this run would hardly have such weights.

    Not to be confused with: (1) `norm_explosion`, which this rule mutes: weights that blow up take long steps, or have
    few directions. (2) Another checkpoint that was loaded whole, a notice as described above: when one layer jumps, all
    layers are read. In a job of several ranks, or where the budget does not allow all these readings, it may still be a
    warning in the layers that were read. (3) Averaged weights: their distance from the start hardly falls.

    The rule cannot distinguish from a blow-up: weights that are scaled or set back to larger values, and weights
    replaced by trained ones of three times their norm.

    Resolved when the layer moves by ordinary steps again.

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
            early = _replaced_early(history, name, moved, factor)
            jumped += is_far or early is not None  # its steps are not known, as of a weight that is computed
            found += [] if early is None else [early]
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
        is_blown_up = _has_blown_up(before, baseline) or (_has_blown_up(now, baseline) and not is_noise)
        if is_beyond and is_unlike and not is_blown_up:
            evidence = {"update_ratio": now.update_ratio, "before": reach}
            severity: Severity | None = "warning" if size > _BLOWN_UP else None
            found.append(Finding(name, _how_far(now, since, reach), evidence, severity))
        elif is_back:
            what = (
                f"its distance from its start is {now.start_ratio:.2g} of its norm, down from {way:.2g} at step {since}"
            )
            found.append(Finding(name, what, {"start_ratio": now.start_ratio, "before": way}))
    is_whole = 1 < jumped == sum(has_moved(each) and not is_pruned(each) for each in history.report)
    yield from (replace(each, severity=each.severity or "info") if is_whole else each for each in found)


def _how_far(now: LayerReport, since: int, reach: float) -> str:
    """Return how far a replaced weight has moved, and how far its steps could have moved it."""
    moved, explained = significant(now.update_ratio, 2), significant(reach, 2)
    return f"the weight has moved by {moved} times its norm since step {since}; its steps explain at most {explained}"


def _replaced_early(history: History, name: str, moved: float, factor: float) -> Finding | None:
    """Return the finding that a weight without a baseline was replaced; None if it was not."""
    *earlier, now = readings_since_first(history, name)
    before = history.previous.get(name)
    moves = [layer.update_ratio for layer in earlier if layer.update_ratio >= 0]
    steps = [layer.step_ratio for layer in (*earlier, now) if layer.step_ratio >= 0]
    if before is None or len(moves) < _KNOWN_MOVES or not steps or find_raise((*earlier, now), learning_rate):
        return None
    size, reach = frobenius(now) / frobenius(before), (now.step - before.step) * max(steps)
    is_spread = value_of(now, "stable_rank") > SPREAD * value_of(before, "stable_rank")
    is_unlike = is_spread and _is_unlike(now.update_ratio, size, moved, is_noise=is_noise_like(now))
    if not (is_unlike and now.update_ratio > factor * max(reach, *moves)):
        return None
    return Finding(name, _how_far(now, before.step, reach), {"update_ratio": now.update_ratio, "before": reach})


def _has_blown_up(layer: LayerReport, baseline: Sequence[LayerReport]) -> bool:
    """Return whether the spectral norm was already 3 times that of the whole baseline, as in `norm_explosion`."""
    norm, *before = (value_of(each, "spectral_norm") for each in (layer, *baseline))
    return norm > _BLOWN_UP * max(before, default=math.nan)


def _is_unlike(way: float, size: float, moved: float, *, is_noise: bool) -> bool:
    """Return whether a weight has nothing in common with an earlier one, judged by the distance between them.

    Independent weights of norms 1 and r are √(1 + r²) apart. A weight that has grown to r by training has moved by at
    most √(r² − 1), if its steps are at right angles to it; a weight that was scaled to r has moved by r − 1. From r = 3
    on, a sample does not distinguish these distances from r. But a weight that has grown so far by training has few
    directions, and noise has all.

    Args:
        way: distance between the weights, over the norm of the earlier one.
        size: r.
        moved: factor by which the distance must exceed both norms.
        is_noise: whether the spectrum of the later weight is that of noise.
    """
    is_apart = way > moved * size and size <= _BLOWN_UP  # a larger one is so only where it was turned round
    return way > moved and (is_apart or (is_noise and way * moved > size))
