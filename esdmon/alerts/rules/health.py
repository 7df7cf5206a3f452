"""Rules on faults that need no spectrum: NaN, weights that do not move, readings that fail or are old."""

from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History
from esdmon.records import MOVED

LIVELY = 100 * MOVED
"""‖ΔW‖/‖W‖ that another layer must exceed before one is called dead: when a training converges, all layers stop
moving, and not all at the same report. Our choice."""


def non_finite(history: History) -> Iterable[Finding]:
    """A weight holds NaN or infinity.

    Fires at the first reading that finds one, because no training recovers from it by itself. The message names the
    last step at which the weight was finite: restore a checkpoint from then or before.

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

    A weight in the optimizer that requires no gradient is a notice (`info`): it may be frozen on purpose or by mistake.
    So is one that has kept its exact values since the start: optimizers pass over a weight without a gradient, such as
    that of a pooler which the loss does not use. A weight that is zero or not in the optimizer raises no alert.

    Resolved when it moves.

    Source: ours.
    """
    held = [layer for layer in history.report if layer.status == "ok" and layer.in_optimizer]
    if not any(layer.last_move > LIVELY for layer in held):
        return
    for layer in held:
        if layer.stands_still and layer.name in history.layers:
            why = "" if layer.trainable else " although it requires no gradient"
            never_moved = all(
                reading.update_ratio == 0 for reading in (history.first[layer.name], *history.layers[layer.name])
            )
            if never_moved and layer.trainable:
                why = "; it has its exact values since the start, as a layer that the loss does not use"
            yield Finding(
                layer.name,
                f"‖ΔW‖/‖W‖ is {layer.last_move:.1g}, at most {MOVED:g}, while other layers move, and it is in the "
                f"optimizer{why}",
                {"update_ratio": layer.last_move},
                "info" if never_moved or not layer.trainable else None,
            )


def reading_failed(history: History) -> Iterable[Finding]:
    """Readings of a layer, or of all layers, fail.

    Fires when the reading of a layer raises an error (status `failed`) in three consecutive reports; layers that are
    skipped, zero or not finite do not count. If every layer fails, one alert is raised for the model. No other rule
    checks such a layer meanwhile.

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
    """Readings are so old that the other rules may miss a fault.

    Fires when a layer that has moved was last read at least 50 due steps ago, or still waits for its first reading
    after as many. Under a budget, a large model is read in parts, so this is a notice (`info`): a fault may last this
    long before it is found. It is a warning when no report has arrived in 50 due steps: readings hang, fail or are
    paused.

    Resolved when all layers have been read within that time.

    Source: ours.
    """
    if len(history.steps) <= due_steps:
        return
    limit = history.steps[-1 - due_steps]
    old = [layer.name for layer in history.report if layer.step <= limit and not layer.unchanged]
    late = [*old, *history.report.waiting]
    if late:
        others = f" and {len(late) - 1} others" if len(late) > 1 else ""
        yield Finding(
            "",
            f"{late[0]}{others} not read for {due_steps} due steps, since step {limit} or earlier",
            {"layers": float(len(late)), "overhead": history.report.overhead},
        )
