"""Write records to a run of Weights & Biases, in the rows that the user logs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError, MissingExtraError
from esdmon.present import Media, draw_esd
from esdmon.present.scalars import Namespace, portable, scalars, tag
from esdmon.sinks.scalar_logger import level_of, title_of
from esdmon.webpage.report import html
from esdmon.webpage.run_data import RunData
from esdmon_wandb.row import HISTOGRAM_PARTS, PICTURE_PARTS, STEP, NextRow, RunEndedError
from esdmon_wandb.tables import ReadingTable, phase_table

if TYPE_CHECKING:
    import wandb

    from esdmon import Alert, Report
    from esdmon.records.timeline import Timeline

MAX_LAST_PICTURES = 4
"""Largest number of pictures that `close` draws. Our choice."""
MAX_PAGE_BYTES = 1_000_000
"""Largest size in bytes of the HTML report, which is uploaded at alerts and at the end. Our choice."""
_log = logging.getLogger("esdmon")


@explain_wrong_calls
@final
class WandbSink:
    """Write reports and alerts to a run that the user has begun; it stays open.

    Keys are the tags of `esdmon.present.scalars`, drawn over the axis `esdmon/step`. A reading is overwritten by the
    next one if the user logs no row between them. Then it is in no chart of W&B, but in the table `esdmon_readings` at
    the end. Tables, and the page of `esdmon report`, are put into the run's summary, which needs no row.

    Args:
        run: the run to write to.
    """

    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        self._namespace = Namespace(run, f"the W&B run {run.id}")
        self._row = NextRow(run, self._namespace)
        self._media = Media()
        self._readings = ReadingTable()
        self._keys_in_row: set[str] = set()
        self._report: Report | None = None
        self._data = RunData(run.name or run.id)
        self._page_is_due = False
        self._page_step = 0
        self.written = 0
        """Number of readings that were written."""
        self.overwritten = 0
        """Number of readings that were overwritten, since no row was logged before the next one. If W&B makes rows from
        TensorBoard's files, this also counts readings that are in such a row."""
        if not run.disabled:
            phase_table([])  # W&B imports pandas for its first table or histogram, 0.8 s: now, and not in the loop

    @classmethod
    def open(cls, target: str) -> WandbSink:
        """Return a sink for the active run.

        Raises:
            MissingExtraError: without wandb.
            InputError: without an active run, and for a target other than an empty text.
        """
        try:
            import wandb  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink wandb", "wandb", "wandb") from error
        if target:
            raise InputError(f"unknown target 'wandb:{target}'. Use 'wandb' to write to the active run.")
        if wandb.run is None:
            raise InputError("wandb has no active run: call wandb.init() before")
        return cls(wandb.run)

    def write(self, report: Report) -> None:
        """Add numbers and due histograms to the next row; queue pictures of layers whose phase has changed."""
        if self._run.disabled:
            return
        self._report = report
        with self._row.while_open("this reading"):
            self._write_numbers(report)
            self._write_histograms(report)
        self._media.queue_changed(report)

    def catch_up(self) -> bool:
        """Draw the HTML report after an alert, else one picture of the queue. Return True if there is more to draw."""
        if self._page_is_due:
            self._write_page()
            return len(self._media) > 0
        layer = self._media.take()
        if layer is not None and self._report is not None:
            import wandb  # noqa: PLC0415 -- optional

            with self._row.while_open("this picture"):
                pictures = {self._namespace(tag("picture", layer.name)): wandb.Image(draw_esd(layer))}
                self._row.add_media(pictures, self._report.x, PICTURE_PARTS)
        return len(self._media) > 0

    def alert(self, alert: Alert) -> None:
        """Send an alert of the run. W&B drops a second alert of a title within a minute; ours are rarer."""
        self._data.add_alert(alert)
        if self._report is not None and alert.step >= 2 * self._page_step:  # each page is a file to upload
            self._page_is_due = True
        with self._row.while_open("this alert"):
            self._run.alert(title=title_of(alert), text=alert.message, level=level_of(alert), wait_duration=1)

    def rewind(self, step: int) -> None:
        """Drop pictures of readings after a step; rows of the run are not removed."""
        self._readings.rewind(step)
        self._data.rewind(step)
        self._media.rewind(step)

    def resume(self, course: Timeline) -> None:
        """Add the alerts of a run that another process began to the HTML report, without its readings."""
        if not self._data.alerts:
            for alert in course.alerts:
                self._data.add_alert(alert)

    def where(self) -> str:
        """Return the address of the run's page; its id if it is offline."""
        return self._run.url or f"the W&B run {self._run.id}"

    def flush(self) -> None:
        """Do nothing: the run writes by itself."""

    def close(self) -> None:
        """Add tables of the phases, and of all readings if some have no row, to the run's summary."""
        had_ended = self._row.has_ended
        try:
            if self._report is not None:
                self._write_last(self._report)
        except RunEndedError as error:
            if not had_ended:
                _log.warning("esdmon: %s.", error)
        finally:
            self._namespace.release()

    def _write_numbers(self, report: Report) -> None:
        axis = {self._namespace(STEP): report.x}
        numbers = self._namespace.rename(scalars(report))
        undefined: dict[str, float] = {}
        if self._row.has_last_reading:
            self.overwritten += 1
            undefined = self._now_undefined(report, numbers)
            self._run.summary.update(axis | numbers)  # shows the last values even if the loop logs rarely
        else:
            self._keys_in_row = set()
        self._row.add_reading(numbers | undefined, report.x)
        self._keys_in_row |= numbers.keys()
        self._readings.add(report.step, axis | numbers)
        self.written += 1

    def _now_undefined(self, report: Report, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return NaN for the keys in the row that belong to layers read now, but are undefined now."""
        again = {portable(layer.name) for layer in report.new}
        return {key: math.nan for key in self._keys_in_row - numbers.keys() if key.partition("/")[2] in again}

    def _write_histograms(self, report: Report) -> None:
        import wandb  # noqa: PLC0415 -- optional

        histograms = {}
        due = self._media.histograms(report)
        self._data.add(report, due)
        for layer in due:
            if layer.esd is not None:
                counts_and_edges = np.asarray(layer.esd.counts), np.asarray(layer.esd.edges)
                key = self._namespace(tag("esd", layer.name))
                histograms[key] = wandb.Histogram(np_histogram=counts_and_edges)
        self._row.add_media(histograms, report.x, HISTOGRAM_PARTS)

    def _write_page(self) -> None:
        """Write the HTML report of the run into its summary; it replaces an earlier one."""
        import wandb  # noqa: PLC0415 -- optional

        self._page_is_due, self._page_step = False, self._data.last_step
        with self._row.while_open("the page of views"):
            # Without `inject=False` W&B adds links to its own style, which the page's policy does not allow.
            page = wandb.Html(html([self._data], max_bytes=MAX_PAGE_BYTES), inject=False)
            self._run.summary.update({self._namespace("esdmon_report"): page})

    def _write_last(self, report: Report) -> None:
        import wandb  # noqa: PLC0415 -- optional

        readings = f", and of {self.overwritten} readings that have no row," if self.overwritten else ""
        with self._row.while_open(f"the table of phases{readings}"):
            self._run.summary.update({self._namespace("esdmon_phases"): phase_table(report)})
            if self.overwritten:
                columns, rows = self._readings.table()
                table = wandb.Table(columns=columns, data=rows)
                self._run.summary.update({self._namespace("esdmon_readings"): table})
        self._write_page()
        if self.overwritten:
            self._log_overwritten()
        if self._row.has_last_reading:  # otherwise a picture would begin a new row after the user's last one
            for _ in range(min(len(self._media), MAX_LAST_PICTURES)):
                self.catch_up()

    def _log_overwritten(self) -> None:
        kept = "all" if len(self._readings) == self.written else f"{len(self._readings)}"
        if self._row.may_be_of_tensorboard:
            _log.info(
                "esdmon: up to %d of %d readings are in no chart of the W&B run %s: its rows come from TensorBoard "
                "(sync_tensorboard), and it is not known when. Its table %s contains %s of them.",
                self.overwritten,
                self.written,
                self._run.id,
                self._namespace("esdmon_readings"),
                kept,
            )
            return
        _log.warning(
            "esdmon: %d of %d readings are in no chart of the W&B run %s, because no row was logged before the next "
            "one. Its table %s contains %s of them. Call run.log() at least as often as readings are taken.",
            self.overwritten,
            self.written,
            self._run.id,
            self._namespace("esdmon_readings"),
            kept,
        )
