"""Rules on faults that need no spectrum: NaN, units that die, readings that fail or are old."""

from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, evidence_of, value_of
from esdmon.alerts.rules.baseline import KNOWN_FROM
from esdmon.records import MOVED, LayerReport
from esdmon.records.text import count


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
