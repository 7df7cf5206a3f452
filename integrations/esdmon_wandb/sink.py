"""Records to a run of Weights & Biases, in the rows that the user logs.

A row of a run is what was logged until it is committed, and the run's step counts rows. A sink that commits rows of its
own raises that step, and then W&B drops the rows that the user logs with `step=epoch`. So nothing is committed here:
numbers are logged with `commit=False` and without a step, which adds them to the row that the user logs next, whatever
way that is logged, and changes nothing else in it. The user's last row takes what is left, or the end of the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import numpy as np

from esdmon.errors import InputError, MissingExtraError
from esdmon.present import Gallery, MediaSchedule, draw_esd, prepare
from esdmon.present.scalars import Namespace, clean, scalars, tag
from esdmon_wandb.series import Series

if TYPE_CHECKING:
    import wandb

    from esdmon import Alert, LayerReport, Report

STEP = "esdmon/step"
_AT_CLOSE = 4  # pictures that are drawn at the end, of those that wait
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}
_HISTOGRAM = ("_type", "values", "bins")
_PICTURE = ("_type", "sha256", "size", "path", "format", "width", "height")
_log = logging.getLogger("esdmon")


@final
class WandbSink:
    """Writes to a run that someone else has begun, and leaves it open.

    Keys are the tags of `esdmon.present.scalars`, drawn over `esdmon/step`, an axis of their own. Each key is tied to
    that axis by its exact name when it is first used, since of two patterns that fit (a Trainer's `*`, and
    one of ours) either may win. A reading for which the user has logged no row until the next one is overwritten by
    that one: it is in no chart of W&B then, but in a table `esdmon_readings` at the end. Tables are put into the run's
    summary, which needs no row.

    Args:
        run: the run.
    """

    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        self._names = Namespace(run, f"the W&B run {run.id}")
        self._defined: set[str] = set()
        self._showing = MediaSchedule()
        self._gallery = Gallery()
        self._draws = prepare()
        self._series = Series()
        self._pending: set[str] = set()
        self._row: int | None = None
        self._report: Report | None = None
        self._is_told_of_the_end = False
        self.written = 0
        """Readings that were written."""
        self.overwritten = 0
        """Those of them that have no row, since none was logged until the next reading."""
        if not run.disabled:
            _phase_table([])  # W&B imports pandas for its first table or histogram, 0.8 s: now, and not in the loop

    @classmethod
    def open(cls, target: str) -> WandbSink:
        """Return a sink for the run that is active.

        Raises:
            MissingExtraError: without wandb.
            InputError: without a run, or with a target, which there is none of.
        """
        try:
            import wandb  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink wandb", "wandb", "wandb") from error
        if target:
            raise InputError(f"wandb takes no target, got 'wandb:{target}': it writes to the run that is active")
        if wandb.run is None:
            raise InputError("wandb has no active run: call wandb.init() before")
        return cls(wandb.run)

    def write(self, report: Report) -> None:
        """Add numbers to the next row, and a histogram at every fifth reading of a layer; queue pictures."""
        if self._run.disabled:
            return
        self._report = report
        with self._while_open("this reading"):
            self._write_numbers(report)
            self._write_histograms(report)
        if self._draws:
            self._gallery.queue(self._showing.changed(report))

    def catch_up(self) -> bool:
        """Draw one picture of a layer whose phase has changed. Return whether more wait."""
        layer = self._gallery.take()
        if layer is not None:
            import wandb  # noqa: PLC0415 -- optional

            with self._while_open("this picture"):
                self._add({self._names(tag("picture", layer.name)): wandb.Image(draw_esd(layer))}, _PICTURE)
        return len(self._gallery) > 0

    def alert(self, alert: Alert) -> None:
        """Send an alert of the run. W&B would drop a second one of a title within a minute; ours are few enough."""
        title = f"esdmon: {alert.rule} {alert.state}"
        with self._while_open("this alert"):
            self._run.alert(title=title, text=alert.message, level=_LEVELS[alert.severity], wait_duration=1)

    def rewind(self, step: int) -> None:
        """Forget what was read after a step; what is in the run stays there."""
        self._series.rewind(step)
        self._gallery.rewind(step)

    def flush(self) -> None:
        """Do nothing: the run writes by itself."""

    def close(self) -> None:
        """Put the phases of all layers, and readings that have no row, into tables; the run itself stays open."""
        was_told = self._is_told_of_the_end
        try:
            if self._report is not None:
                self._finish(self._report)
        except RunEndedError as error:
            if not was_told:
                _log.warning("esdmon: %s.", error)
        finally:
            self._names.free()

    def _finish(self, report: Report) -> None:
        import wandb  # noqa: PLC0415 -- optional

        lost = f", and of {self.overwritten} readings that found no row," if self.overwritten else ""
        with self._while_open(f"the table of phases{lost}"):
            self._run.summary.update({self._names("esdmon_phases"): _phase_table(report)})
            if self.overwritten:
                columns, rows = self._series.table()
                readings = wandb.Table(columns=columns, data=rows)
                self._run.summary.update({self._names("esdmon_readings"): readings})
        if self.overwritten:
            self._tell_of_overwritten()
        if self._has_open_row():  # else a picture would begin a row after the user's last
            for _ in range(min(len(self._gallery), _AT_CLOSE)):
                self.catch_up()

    def _tell_of_overwritten(self) -> None:
        kept = "all" if len(self._series) == self.written else f"{len(self._series)} of all"
        _log.warning(
            "esdmon: %d of %d readings are in no chart of the W&B run %s, since no row was logged before the next; %s "
            "are in its table %s. Call run.log() at least as often as readings are taken.",
            self.overwritten,
            self.written,
            self._run.id,
            kept,
            self._names("esdmon_readings"),
        )

    def _has_open_row(self) -> bool:
        """Return whether the row that our last reading was added to is still to be committed."""
        return self._row is not None and self._row == _rows(self._run)

    def _write_numbers(self, report: Report) -> None:
        axis = {self._names(STEP): report.x}
        numbers = self._names.all(scalars(report))
        undefined: dict[str, float] = {}
        if self._has_open_row():
            self.overwritten += 1
            undefined = self._undefined(report, numbers)
            self._run.summary.update(axis | numbers)  # a loop that logs rarely shows the last values nevertheless
        else:
            self._pending = set()
        self._add(numbers | undefined)
        self._pending |= numbers.keys()
        self._row = _rows(self._run)
        self._series.add(report.step, axis | numbers)
        self.written += 1

    def _write_histograms(self, report: Report) -> None:
        import wandb  # noqa: PLC0415 -- optional

        due = ((layer.name, layer.esd) for layer in self._showing.histograms(report))
        parts = {name: (np.asarray(esd.counts), np.asarray(esd.edges)) for name, esd in due if esd is not None}
        found = {self._names(tag("esd", name)): wandb.Histogram(np_histogram=both) for name, both in parts.items()}
        self._add(found, _HISTOGRAM)

    def _undefined(self, report: Report, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return NaN for what is still in the row of layers that are read again now, and that has no value any more."""
        again = {clean(layer.name) for layer in report.new}
        return {key: math.nan for key in self._pending - numbers.keys() if key.partition("/")[2] in again}

    def _add(self, values: Mapping[str, Any], parts: tuple[str, ...] = ()) -> None:
        """Add values to the row that the user logs next.

        Args:
            values: by key.
            parts: what a value that is no number consists of. W&B matches each part with the patterns of
                `define_metric`, and where `*` has an axis it would put a stale value of that axis into the user's row.
        """
        axis = self._names(STEP)
        if axis not in self._defined:
            self._run.define_metric(axis, hidden=True)
        for key in values.keys() - self._defined:
            for name in (key, *(f"{key}.{part}" for part in parts)):
                self._run.define_metric(name, step_metric=axis)
        self._defined |= {axis, *values}
        if values and self._report is not None:
            self._run.log({**values, axis: self._report.x}, commit=False)

    @contextmanager
    def _while_open(self, what: str) -> Iterator[None]:
        from wandb.errors import UsageError  # noqa: PLC0415 -- optional

        try:
            yield
        except UsageError as error:
            if "finished" not in str(error):
                raise
            msg = (
                f"the W&B run {self._run.id} was finished before the monitor was closed: {what} is not in it. Close "
                "the monitor before the run is finished"
            )
            self._is_told_of_the_end = True
            raise RunEndedError(msg) from None


class RunEndedError(RuntimeError):
    """The run was finished by its user."""


def _rows(run: wandb.Run) -> int | None:
    """Return the number of the row that is logged to now, or None where it cannot be told.

    `run.step` asks W&B's process for it and waits for the answer, up to 30 s: not in a training loop.
    """
    row = getattr(run, "_local_step", None)
    return row if isinstance(row, int) else None


_PHASES: Mapping[str, Callable[[LayerReport], Any]] = {
    "layer": lambda layer: layer.name,
    "phase": lambda layer: layer.phase.value,
    "alpha": lambda layer: layer.measures.get("alpha"),
    "alpha is meaningful": lambda layer: layer.alpha_is_meaningful,
    "MP soft rank": lambda layer: layer.measures.get("mp_soft_rank"),
    "step": lambda layer: layer.step,
    "explanation": lambda layer: layer.explanation or layer.reason,
}


def _phase_table(layers: Iterable[LayerReport]) -> wandb.Table:
    import wandb  # noqa: PLC0415 -- optional

    return wandb.Table(columns=list(_PHASES), data=[[value(layer) for value in _PHASES.values()] for layer in layers])
