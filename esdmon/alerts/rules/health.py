"""Rules on whether a layer, and the monitor itself, is alive."""

from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History
from esdmon.records import MOVED

LIVELY = 100 * MOVED
"""‖ΔW‖/‖W‖ of some other layer without which none is called dead: as a training converges all come to a halt, and
not all at the same report. Our choice."""


def non_finite(history: History) -> Iterable[Finding]:
    """A weight holds NaN or infinity.

    Fires at the first reading that finds one, since no training comes back from it by itself, and says at which step it
    was not so yet: the checkpoint to go back to lies before.

    Resolved at the first reading without.
    """
    for name, readings in history.layers.items():
        now = readings[-1]
        if now.status == "nonfinite":
            good = next((layer.step for layer in reversed(readings) if layer.status != "nonfinite"), None)
            known = "" if good is None else f"; at step {good} it was not so"
            yield Finding(name, f"{now.reason}{known}")


def dead_layer(history: History) -> Iterable[Finding]:
    """A layer that is to be trained does not move.

    Fires when the optimizer holds the weight and it has changed by less than a millionth since it was read, on a sample
    of its elements, five reports in a row, while another layer moves by a hundred times as much. The layer is cut off
    from the loss, its units are dead, no token is routed to it, or updates are too small for the dtype of the weight:
    bfloat16 rounds away what is below a 250th of it.

    A weight that requires no gradient and is in the optimizer all the same is a notice (`info`): many freeze layers so,
    and some by mistake. One that the optimizer does not hold, or that is zero, is never told.

    Resolved when it moves.

    Source: ours.
    """
    held = [layer for layer in history.report if layer.status == "ok" and layer.in_optimizer]
    if not any(layer.last_move > LIVELY for layer in held):
        return
    for layer in held:
        if layer.stands_still and layer.name in history.layers:
            why = "" if layer.trainable else " (it requires no gradient)"
            yield Finding(
                layer.name,
                f"it does not move, while others do, and the optimizer holds it{why}",
                {"update_ratio": layer.last_move},
                None if layer.trainable else "info",
            )


def reading_failed(history: History) -> Iterable[Finding]:
    """The monitor is blind: readings of a layer, or of all layers, fail.

    Fires when a layer has the status `failed` in three reports in a row: not one that is skipped, zero or not finite,
    which has its own reason, but one whose reading raised an error. Where that is so for every layer, it is said once,
    of the model. No other rule sees a fault in such a layer meanwhile.

    Resolved when the layer is read again.

    Source: ours.
    """
    failed = [layer for layer in history.report if layer.status == "failed"]
    if failed and len(failed) == len(history.report):
        yield Finding("", f"the reading of every layer fails: {failed[0].reason}", {"layers": float(len(failed))})
        return
    for layer in failed:
        if layer.name in history.layers:
            yield Finding(layer.name, f"its reading fails: {layer.reason}")


def stale_monitor(history: History, *, due_steps: int = 50) -> Iterable[Finding]:
    """The readings are so old that the other rules are blind.

    Fires when a layer that has moved since was last read 50 due steps ago or more, or still waits for its first
    reading after as many. Of a large model not all is read at each due step, and that is as it should be, so it is a
    notice: a fault may stand this long before it is seen. It is a warning when no report has come at all in 50 due
    steps, since readings hang, fail or are shut off.

    Resolved when all layers have been read since.

    Source: ours.
    """
    if len(history.steps) <= due_steps:
        return
    limit = history.steps[-1 - due_steps]
    old = [layer.name for layer in history.report if layer.step <= limit and not layer.unchanged]
    late = [*old, *history.report.waiting]
    if late:
        yield Finding(
            "",
            f"{late[0]}{f' and {len(late) - 1} others' if len(late) > 1 else ''} not read since step {limit} or "
            f"before, {due_steps} due steps ago",
            {"layers": float(len(late)), "overhead": history.report.overhead},
        )
