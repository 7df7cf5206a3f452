"""The rule on layers that do not move, or that only the optimizer moves and no gradient."""

import math
from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, Pause
from esdmon.alerts.rules.baseline import WARM_UP
from esdmon.alerts.rules.jumps import frobenius
from esdmon.records import INACTIVE, MOVED, LayerReport

LIVELY = 100 * MOVED
"""‖ΔW‖/‖W‖ that another layer must exceed before a layer is called dead: when a training converges, all layers stop
moving, but not all at the same report. Our choice."""
_ALONE = 0.98
"""Share of a step's length by which it makes a weight shorter or longer, above which the step only scales the weight. A
gradient step of a fifth of the decay lowers the share below this. Our choice."""
_SPARSE = 0.9  # share of zeros in a gradient up to which 256 sampled elements are not all zero by chance; our choice
_DECAYING = 0.5  # of the length of a step, by which decay makes a weight shorter, as in `norm_decay`
_RAISED = 2.0  # times the first weight decay, above which decay can outweigh a gradient; our choice
_LONG = 5  # due steps, the `checks` of the rule, that a layer which is idle at times must stand still
_LOWERED = 0.1  # of a learning rate, below which slow steps are meant; our choice
_AS_FAR = 1.1  # times the sum of such steps: a weight that has moved farther had other steps between the samples


def dead_layer(history: History) -> Iterable[Finding]:
    """A layer in the optimizer does not move.

    Fires when, in five consecutive reports, a weight in the optimizer has changed by at most a millionth of its norm
    since its last reading, on a sample of its elements, while another layer moves by more than 1e-4 of its norm. Usual
    causes: the layer is cut off from the loss, all its units are dead, no token is routed to it, or updates are too
    small for the dtype of the weight. bfloat16 rounds away an update below 1/250 of the element.

    It also fires when weight decay alone moves a weight, while gradients move another layer: the sampled step of that
    layer makes it shorter by less than half of the step's length. Optimizers with weight decay still shrink a
    weight whose gradient is zero, and Lookahead takes back a part of the decay every few steps. The conditions are:
    the sampled steps of its last two readings only scale the weight, by 98 % of their length or more; one of them,
    or all steps between them, make it shorter; it has moved no farther than such steps reach; and its weight decay
    is at most twice that of the first reading. A higher decay may outweigh a gradient: see `norm_decay`.

    It also fires when the optimizer goes on to move a weight whose gradient is zero, as momentum does, Lion by the sign
    of its momentum, and schedule-free optimizers as their average follows: the gradient's sampled elements were
    exactly zero at the last two sampled steps, and not before. Only gradients that `step()` leaves as they were can
    be checked: schedule-free AdamW adds weight decay to them. Embeddings are not checked in this way, since most of
    their rows get no gradient, nor weights of whose gradient more than nine tenths were zero before.

    It also fires when no layer moves any more, or none has a gradient, for each layer that has stopped suddenly: in the
    last 16 readings it moved by more than 1e-4 of its norm, at a learning rate of less than ten times the present one.
    Usual causes are units that are all dead (only biases still move), a gradient that is detached, a loss that is
    multiplied by zero, or a scaler that skips each step.

    A layer that gradients do not reach at each step, as an expert to which few tokens are routed, must first have stood
    still, or had no gradient, for five more due steps. This holds where a sampled step of the baseline did not move it
    or had no gradient, or fewer than six were sampled. A layer that has stood still before and moved again, as the head
    of a task that is trained in turn with others, must first have stood still for longer than ever before.

    It is only a notice (`info`) in four cases. (1) The weight requires no gradient: it may be frozen on purpose or by
    mistake. (2) It has kept its exact values since the start: optimizers pass over a weight without a gradient, such as
    that of a pooler which the loss does not use. (3) It belongs to an adapter that adds nothing, since one of its
    factors is zero and does not move. (4) No layer moves any more, and the optimizer has no setting of weight decay, as
    LBFGS: such optimizers of whole batches stop at once when they have converged. Any other weight that is zero, or not
    in the optimizer, raises no alert.

    Not to be confused with: (1) A training that has converged: all layers stop slowly. (2) A layer that is frozen by
    `requires_grad`, or not used by the loss: a notice.

    The rule cannot distinguish a training that converges at once, as with a hinge loss when each example is beyond the
    margin, nor a group of the optimizer whose learning rate is 0 for a while.

    Resolved when the layer has a gradient and moves by more than 1e-4 of its norm, not by weight decay alone.

    Source: ours.
    """
    held = [layer for layer in history.report if layer.status == "ok" and layer.in_optimizer]
    decaying = {layer.name for layer in held if _only_decays(layer.name, history)}
    without = {layer.name for layer in held if _has_no_gradient(layer.name, history)}
    is_lively = any(_is_lively(layer) and layer.name not in decaying | without for layer in held)
    has_stopped = not is_lively and all(layer.stands_still or layer.name in without for layer in held)
    for layer in held:
        is_old = layer.name in history.firing
        if not (is_lively or is_old or (has_stopped and _stopped_suddenly(layer.name, history))):
            continue
        if (layer.stands_still or (is_old and layer.last_move <= LIVELY)) and layer.name in history.layers:
            if layer.trainable and not is_old and _may_be_idle(layer.name, history):
                continue
            why = "" if layer.trainable else "; it requires no gradient"
            never_moved = all(
                reading.update_ratio == 0 for reading in (history.first[layer.name], *history.layers[layer.name])
            )
            if never_moved and layer.trainable:
                why = "; its values are exactly those of the start, as if the loss did not use it"
            if has_stopped and _takes_whole_batches(layer):
                why = "; an optimizer of whole batches, such as LBFGS, stops so when it has converged"
            yield Finding(
                layer.name,
                f"the weight does not move (‖ΔW‖/‖W‖ is {layer.last_move:.1g}), "
                f"while {'other layers move' if is_lively else 'no layer moves any more'}, although "
                f"the optimizer holds it{why}",
                {"update_ratio": layer.last_move},
                "info" if why else None,
            )
        elif layer.name in decaying and is_lively:
            yield Finding(
                layer.name,
                f"weight decay alone moves the weight, by {layer.step_ratio:.1g} of its norm at each step, while "
                "gradients move other layers",
                {"step_ratio": layer.step_ratio, "step_growth": layer.step_growth},
            )
        elif layer.name in without and (is_old or not _may_lack_gradients(layer.name, history)):
            yield Finding(
                layer.name,
                f"its gradient is zero, while {'other layers have one' if is_lively else 'no layer has one any more'}; "
                f"what is left in the optimizer moves it, by {layer.step_ratio:.1g} of its norm at each step",
                {"step_ratio": layer.step_ratio},
            )
    yield from _inactive_adapters(history) if is_lively else ()


def _is_lively(layer: LayerReport) -> bool:
    """Return whether a layer moves, and its sampled step does not for the most part make it shorter.

    Where all gradients have almost vanished, decay alone moves all layers, and the others as well as this one.
    """
    return layer.last_move > LIVELY and not -layer.step_growth > _DECAYING * layer.step_ratio


def _inactive_adapters(history: History) -> Iterable[Finding]:
    """Find adapters in the optimizer whose zero factor does not move."""
    for layer in history.report:
        if layer.reason == INACTIVE and layer.in_optimizer and layer.last_move <= MOVED:
            why = "" if layer.trainable else ", and it requires no gradient"
            what = (
                f"the adapter adds nothing: one of its factors is zero and does not move, while other layers move{why}"
            )
            yield Finding(layer.name, what, {}, "info")


def _only_decays(name: str, history: History) -> bool:
    """Return whether weight decay alone explains the steps of a layer's last two readings and those between."""
    readings = history.layers.get(name, ())
    if len(readings) < 2:
        return False
    before, now = readings[-2:]
    is_scaled = all(abs(layer.step_growth) > _ALONE * layer.step_ratio > 0 for layer in (before, now))
    is_shorter = min(before.step_growth, now.step_growth) < 0 or frobenius(now) < frobenius(before)
    reach = (now.step - before.step) * max(before.step_ratio, now.step_ratio)
    is_raised = now.weight_decay > _RAISED * history.first[name].weight_decay
    return is_scaled and is_shorter and now.weight_decay != 0 and not is_raised and now.update_ratio <= _AS_FAR * reach


def _may_be_idle(name: str, history: History) -> bool:
    """Return whether a layer that stands still may only wait for its next gradient, as an expert for tokens.

    It may if it has paused before, for as long or longer, and then moved again. It also may if it moved in the last
    five due steps, unless the baseline has six or more sampled steps that all moved it.
    """
    pause = history.pauses.get(name, Pause())
    if 0 < pause.longest >= pause.now:
        return True
    ratios = [layer.step_ratio for layer in history.baseline[name] if layer.step_ratio >= 0]
    if len(ratios) >= WARM_UP and min(ratios) > 0:
        return False
    moved = [layer.step for layer in history.layers[name] if layer.update_ratio > MOVED]
    return len(history.steps) < _LONG or max(moved, default=0) > history.steps[-_LONG]


def _has_no_gradient(name: str, history: History) -> bool:
    """Return whether the gradient was zero at the last two sampled steps of a layer, and most of it was not before.

    If it has always been zero, it may have been set to zero before it was sampled: where the loop calls
    `monitor.step()` after `zero_grad(set_to_none=False)`. If nearly all of it was zero before, as for inputs that are
    counts of words, the sampled elements may be zero by chance.
    """
    sampled = [layer for layer in history.layers.get(name, ()) if layer.zero_gradient >= 0]
    known = (history.first[name], *history.baseline[name], *sampled) if sampled else ()
    return (
        len(sampled) > 1
        and all(layer.zero_gradient == 1 and layer.kind != "embedding" for layer in sampled[-2:])
        and (name in history.firing or any(layer.zero_gradient < _SPARSE for layer in known))
    )


def _may_lack_gradients(name: str, history: History) -> bool:
    """Return whether a layer without a gradient may only wait for its next one; see `_may_be_idle`."""
    shares = [layer.zero_gradient for layer in history.baseline[name] if layer.zero_gradient >= 0]
    if len(shares) >= WARM_UP and max(shares) < 1:
        return False
    reached = [layer.step for layer in history.layers[name] if layer.zero_gradient < 1]
    return len(history.steps) < _LONG or max(reached, default=0) > history.steps[-_LONG]


def _stopped_suddenly(name: str, history: History) -> bool:
    """Return whether a layer that stands still moved in its last 16 readings, at less than 10 times the rate of now."""
    *before, now = history.layers.get(name, (None,))
    return now is not None and any(
        layer.update_ratio > LIVELY and now.learning_rate > _LOWERED * layer.learning_rate for layer in (*before, now)
    )


def _takes_whole_batches(layer: LayerReport) -> bool:
    """Return whether the optimizer has no weight decay at all, as LBFGS and Rprop, which are for whole batches.

    When such an optimizer has converged, its steps are zero at once.
    """
    return layer.learning_rate > 0 and math.isnan(layer.weight_decay)
