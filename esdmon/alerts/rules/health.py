"""Rules on faults that need no spectrum: NaN, weights that do not move, readings that fail or are old."""

import math
from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, Pause, evidence_of, value_of
from esdmon.alerts.rules.baseline import KNOWN_FROM, WARM_UP
from esdmon.alerts.rules.jumps import frobenius
from esdmon.records import INACTIVE, MOVED, LayerReport
from esdmon.records.text import count

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


def non_finite(history: History) -> Iterable[Finding]:
    """A weight holds NaN or infinity.

    Fires at the first reading that finds one, because no training recovers from it by itself. The message names the
    last step at which the weight was finite: restore a checkpoint from this step or earlier.

    A loss or a gradient that is not finite raises nothing while the weights are finite: only weights are read, and a
    gradient scaler skips such steps.

    Not to be confused with: `norm_explosion`, where weights are huge but finite.

    Resolved at the first reading without NaN or infinity.
    """
    for name, readings in history.layers.items():
        now = readings[-1]
        if now.status == "nonfinite":
            good = next((layer.step for layer in reversed(readings) if layer.status != "nonfinite"), None)
            last_good = "" if good is None else f" (all finite at step {good})"
            yield Finding(name, f"{now.reason}{last_good}")


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

    It may if it has stood still as long before, and then moved again. It also may if it moved in the last five due
    steps, unless the baseline has six or more sampled steps that all moved it.
    """
    pause = history.pauses.get(name, Pause())
    if pause.now <= pause.longest:
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


def dead_units(history: History, *, share: float = 0.1) -> Iterable[Finding]:
    """Units of a layer die: rows of its weight become zero.

    Fires when the number of dead rows has grown since the first reading of the run by more than a tenth of all rows. A
    row is dead if it is zero, or its rms is below 1e-3 of that of the median row. Rows are the outputs of a linear
    layer or the channels of a convolution; the unit of a dead row gives a constant.

    Rows decay where no gradient reaches them, as behind a ReLU that never opens. Weight decay, or a penalty on groups,
    then removes them, which may be intended.

    Columns are not checked: they die where an input is always zero, as the corners of pictures, which harms nothing.
    The measures `zero_columns` and `weak_columns` count them. A difference from a reference is not checked either: its
    zero rows are rows that have not changed.

    Not to be confused with: (1) Inputs that are always zero: these are columns. (2) Rows that were zero at the first
    reading, as of padding: they do not count. (3) `norm_decay`: all rows decay; it mutes this rule.

    It is only a notice (`info`) where the module computes the weight, as under the masks of `torch.nn.utils.prune`, and
    the rows became zero at once: in no reading were half as many rows weak before.

    The rule cannot distinguish pruning on purpose by other means, such as a mask that a script applies after `step()`.

    Resolved when at most half of that share of rows has died since the first reading.

    Source: ours; dormant units as a fault of long trainings: S. Dohare and others, Nature 632 (2024) 768.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        dead, before = value_of(now, "zero_rows"), value_of(first, "zero_rows")
        rows = _rows(now)
        limit = share / 2 if name in history.firing else share
        if now.is_weight and dead - before > limit * rows > 0:
            is_masked = now.computed and not _were_weak(readings, dead - before)
            yield Finding(
                name,
                f"{dead:.0f} of {rows} rows are dead, from {before:.0f} at step {first.step}"
                f"{'; the module computes the weight, and its rows became zero at once, as by a mask' * is_masked}",
                evidence_of(now, "zero_rows", "weak_rows", "zero_columns"),
                "info" if is_masked else None,
            )


def _were_weak(readings: Iterable[LayerReport], count: float) -> bool:
    """Return whether half of so many rows were weak in one of these readings, as rows that decay are at first."""
    return any(2 * value_of(layer, "weak_rows") >= count for layer in readings)


def _rows(layer: LayerReport) -> int:
    """Return the number of rows of the weight, dead ones included; of a convolution those of one kernel position.

    A record has the longer and the shorter side without dead rows and columns, but does not say which side the rows
    are. The number of all elements shows it.
    """
    for rows, columns in ((layer.N, layer.M), (layer.M, layer.N)):
        whole = (rows + layer.dead_rows) * (columns + layer.dead_columns) * (layer.slices + layer.dead_slices)
        if layer.n_parameters == whole:
            return rows + layer.dead_rows
    return layer.N + layer.dead_rows


def reading_failed(history: History) -> Iterable[Finding]:
    """Readings of a layer, or of all layers, fail.

    Fires when the reading of a layer raises an error (status `failed`) in three consecutive reports. If every layer
    fails, one alert is raised for the model. No other rule checks the layer meanwhile.

    Not to be confused with: layers that are left out on purpose, zero or not finite. They have a status and a reason of
    their own, and do not count.

    Resolved when the layer is read successfully.

    Source: ours.
    """
    failed = [layer for layer in history.report if layer.status == "failed"]
    if failed and len(failed) == len(history.report):
        yield Finding("", f"the reading of every layer failed: {failed[0].reason}", {"layers": float(len(failed))})
        return
    for layer in failed:
        if layer.name in history.layers:
            yield Finding(layer.name, f"its reading failed: {layer.reason}")


def stale_monitor(history: History, *, due_steps: int = 50) -> Iterable[Finding]:
    """Readings are so old or so few that the other rules may miss a fault.

    Fires when a layer that has moved was last read at least 50 due steps ago, or has waited as long for its first
    reading. It also fires when a layer that moves has been read fewer than nine times, 18 or more due steps after it
    first moved: rules on change need nine readings of a layer, and find nothing before.

    It is a notice (`info`): under a budget, a large model is read in parts, so a fault may last this long before it is
    found. It is a warning when no report has arrived in 50 due steps: readings hang, fail, are paused, or find no idle
    core in a thread or a worker process.

    Not to be confused with: (1) Layers that do not move: they need no new reading and do not count. (2) A training that
    logs nothing because it is slow: the rule counts due steps, not seconds.

    Resolved when all layers have been read within 50 due steps, and nine times.

    Source: ours.
    """
    found = [layer for layer in history.report if not layer.unchanged]
    late, what, then = [], "", ""
    if len(history.steps) > due_steps:
        limit = history.steps[-1 - due_steps]
        late = [*(layer.name for layer in found if layer.step <= limit), *history.report.waiting]
        what, then = "no reading", f"for {due_steps} due steps, since step {limit} or earlier"
    if not late and len(history.steps) >= 2 * KNOWN_FROM:
        begun = history.steps[-2 * KNOWN_FROM]  # a layer that was frozen until later cannot have been read as often
        late = [
            layer.name
            for layer in found
            if layer.status == "ok"
            and layer.trainable
            and len(readings := history.layers.get(layer.name, ())) < KNOWN_FROM
            and min((each.step for each in readings if each.update_ratio > MOVED), default=layer.step) <= begun
        ]
        what, then = f"fewer than {KNOWN_FROM} readings", "so far, so that rules on change find nothing there"
    if late:
        others = f" and {count(len(late) - 1, 'other')}" if len(late) > 1 else ""
        evidence = {"layers": float(len(late)), "overhead": history.report.overhead}
        yield Finding("", f"{what} of {late[0]}{others} {then}", evidence)
