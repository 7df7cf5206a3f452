"""Rules on faults that need no spectrum: NaN, weights that do not move, readings that fail or are old."""

from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, evidence_of, value_of
from esdmon.alerts.rules.baseline import KNOWN_FROM, WARM_UP
from esdmon.alerts.rules.jumps import frobenius
from esdmon.records import INACTIVE, MOVED, LayerReport
from esdmon.records.text import count

LIVELY = 100 * MOVED
"""‖ΔW‖/‖W‖ that another layer must exceed before one is called dead: when a training converges, all layers stop
moving, and not all at the same report. Our choice."""
_ALONE = 0.98
"""Share of a step's length by which it makes a weight shorter or longer, from which it only scales the weight. A
gradient step of a fifth of the decay makes the share less. Our choice."""
_RAISED = 2.0  # times the first weight decay, from which it can outweigh a gradient; our choice
_LONG = 5  # due steps, the `checks` of the rule, that a layer stands still which may be idle at times
_LOWERED = 0.1  # of a learning rate, below which slow steps are meant; our choice
_AS_FAR = 1.1  # times the sum of such steps: a weight that has moved farther had other steps between the samples


def non_finite(history: History) -> Iterable[Finding]:
    """A weight holds NaN or infinity.

    Fires at the first reading that finds one, because no training recovers from it by itself. The message names the
    last step at which the weight was finite: restore a checkpoint from then or before.

    Confused with a loss or a gradient that is not finite while the weights still are: that raises nothing, as only
    weights are read here, and a gradient scaler skips such steps. Weights that are huge but finite are
    `norm_explosion`.

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

    Fires when a weight in the optimizer has changed by at most a millionth of its norm since it was read, on a sample
    of its elements, in five consecutive reports, while another layer moves by a hundred times as much. The layer is cut
    off from the loss, its units are dead, no token is routed to it, or updates are too small for the dtype of the
    weight: bfloat16 rounds away an update below 1/250 of the element.

    It also fires when weight decay alone moves a weight: the sampled steps of its last two readings only scale it, by
    98 % of their length or more, one of them or all steps between make it shorter, it has moved no farther than such
    steps reach, and another layer is moved by gradients. Optimizers with weight decay still shrink a weight whose
    gradient is zero, and Lookahead takes back a part of that every few steps. Where the weight decay itself is more
    than twice that of the first reading, the gradient need not be zero: that is `norm_decay`.

    Where the gradient is zero, and not None, some optimizers go on to move a weight: Lion by the sign of what is left
    of its momentum, schedule-free ones as their average follows. There it does not fire.

    A layer that gradients do not reach at each step, as an expert to which few tokens are routed, stands still between
    them. Where a sampled step of the baseline did not move it, or less than six were sampled, it must have stood still
    for five due steps before that.

    Where no layer moves, it fires for those that have stopped suddenly: in the last 16 readings one has still moved by
    more than 1e-4 of its norm, and the learning rate is more than a tenth of what it was. Units that are all dead stop
    all layers except for biases, and so does a gradient that is detached, or a scaler that skips each step.

    A weight in the optimizer that requires no gradient is a notice (`info`): it may be frozen on purpose or by mistake.
    So is one that has kept its exact values since the start: optimizers pass over a weight without a gradient, such as
    that of a pooler which the loss does not use. So is an adapter that adds nothing, since one of its factors is zero
    and does not move. Another weight that is zero, or not in the optimizer, raises no alert.

    Confused with a training that has converged, where all layers stop slowly; one that stops at once, as with a hinge
    loss when each example is beyond the margin, is not distinguished. With a layer that is frozen by `requires_grad`,
    or not used by the loss: notices. With a group of the optimizer whose learning rate is 0 for a while: this rule does
    not distinguish it.

    Resolved when it moves by more than 1e-4 of its norm, and not by weight decay alone.

    Source: ours.
    """
    held = [layer for layer in history.report if layer.status == "ok" and layer.in_optimizer]
    decaying = {layer.name for layer in held if _only_decays(layer.name, history)}
    is_lively = any(layer.last_move > LIVELY and layer.name not in decaying for layer in held)
    has_stopped = not is_lively and all(layer.stands_still for layer in held)
    for layer in held:
        is_old = layer.name in history.firing
        if not (is_lively or is_old or (has_stopped and _stopped_suddenly(layer.name, history))):
            continue
        if (layer.stands_still or (is_old and layer.last_move <= LIVELY)) and layer.name in history.layers:
            if layer.trainable and not is_old and _may_be_idle(layer.name, history):
                continue
            why = "" if layer.trainable else " although it requires no gradient"
            never_moved = all(
                reading.update_ratio == 0 for reading in (history.first[layer.name], *history.layers[layer.name])
            )
            if never_moved and layer.trainable:
                why = "; it has its exact values since the start, as a layer that the loss does not use"
            yield Finding(
                layer.name,
                f"‖ΔW‖/‖W‖ is {layer.last_move:.1g}, at most {MOVED:g}, "
                f"while {'other layers move' if is_lively else 'no layer moves any more'}, and it is in the "
                f"optimizer{why}",
                {"update_ratio": layer.last_move},
                "info" if never_moved or not layer.trainable else None,
            )
        elif layer.name in decaying:
            yield Finding(
                layer.name,
                f"weight decay alone moves it, by {layer.step_ratio:.1g} of its norm at each step, while gradients "
                "move other layers",
                {"step_ratio": layer.step_ratio, "step_growth": layer.step_growth},
            )
    yield from _inactive_adapters(history) if is_lively else ()


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
    """Return whether the steps of a layer's last two readings, and those between, were nothing but weight decay."""
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

    That is so if it moved in the last five due steps, unless each of six or more sampled steps before has moved it.
    """
    ratios = [layer.step_ratio for layer in history.baseline[name] if layer.step_ratio >= 0]
    if len(ratios) >= WARM_UP and min(ratios) > 0:
        return False
    moved = [layer.step for layer in history.layers[name] if layer.update_ratio > MOVED]
    return len(history.steps) < _LONG or max(moved, default=0) > history.steps[-_LONG]


def _stopped_suddenly(name: str, history: History) -> bool:
    """Return whether a layer that stands still moved a few readings ago, at a learning rate as now."""
    *before, now = history.layers.get(name, (None,))
    return now is not None and any(
        layer.update_ratio > LIVELY and now.learning_rate > _LOWERED * layer.learning_rate for layer in (*before, now)
    )


def dead_units(history: History, *, share: float = 0.1) -> Iterable[Finding]:
    """Units of a layer die: rows of its weight become zero.

    Fires when the rows that are zero, or have an rms below 1e-3 of that of the median row, are a tenth of all rows more
    than at the first reading of the run. Rows are the outputs of a linear layer, the channels of a convolution: a unit
    behind them gives a constant. Rows decay so where no gradient reaches them, as behind a ReLU that never opens, and
    where weight decay or a penalty on groups removes them, which may be meant.

    Columns die where an input is always zero, as the corners of pictures, which harms nothing: they are in the measures
    `zero_columns` and `weak_columns`, and raise no alert. Of a difference from a reference these are rows that have not
    changed, so it is not checked.

    Confused with inputs that are always zero, which are columns; with rows that were zero from the first reading on, as
    of padding, which do not count; and with pruning that is meant, which this rule does not distinguish: a mask that a
    script applies after `step()` comes after the reading, so that pruned elements are not zero there. Decay of all rows
    is `norm_decay`, which mutes this rule.

    Resolved when no more than half of that share is dead beyond the first reading.

    Source: ours; dormant units as a fault of long trainings: S. Dohare and others, Nature 632 (2024) 768.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        dead, before = value_of(now, "zero_rows"), value_of(first, "zero_rows")
        rows = _rows(now)
        limit = share / 2 if name in history.firing else share
        if now.is_weight and dead - before > limit * rows > 0:
            yield Finding(
                name,
                f"{dead:.0f} of {rows} rows are dead, from {before:.0f} at step {first.step}",
                evidence_of(now, "zero_rows", "weak_rows", "zero_columns"),
            )


def _rows(layer: LayerReport) -> int:
    """Return the number of rows of the weight, dead ones included; of a convolution those of one kernel position.

    A record has the longer and the shorter side of what is left, and not which of them are rows, so that they follow
    from the number of all elements.
    """
    for rows, columns in ((layer.N, layer.M), (layer.M, layer.N)):
        whole = (rows + layer.dead_rows) * (columns + layer.dead_columns) * layer.slices
        if layer.n_parameters == whole:
            return rows + layer.dead_rows
    return layer.N + layer.dead_rows


def reading_failed(history: History) -> Iterable[Finding]:
    """Readings of a layer, or of all layers, fail.

    Fires when the reading of a layer raises an error (status `failed`) in three consecutive reports; layers that are
    skipped, zero or not finite do not count. If every layer fails, one alert is raised for the model. No other rule
    checks such a layer meanwhile.

    Confused with layers that are left out on purpose, zero or not finite: these have a status and a reason of their
    own.

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

    Fires when a layer that has moved was last read at least 50 due steps ago, or still waits for its first reading
    after as many. It also fires when layers that move were read fewer than nine times in 18 due steps or more since
    they first moved: rules on change need nine readings of a layer, and find nothing before. Under a budget, a large
    model is read in parts, so this is a notice (`info`): a fault may last this long before it is found. It is a warning
    when no report has arrived in 50 due steps: readings hang, fail, are paused, or find no idle core in a thread or a
    worker process.

    Confused with layers that do not move, which need no new reading and do not count; and with a training that logs
    nothing because it is slow: what counts is due steps, and not seconds.

    Resolved when all layers have been read within that time, and nine times.

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
