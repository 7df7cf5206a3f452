"""Write to a tracker that accepts numbers by name, and optionally texts, histograms and tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

from esdmon.calls import explain_wrong_calls
from esdmon.present.media import MAX_HISTOGRAMS, HistogramSchedule
from esdmon.present.phase_table import PHASE_COLUMNS, phase_rows
from esdmon.present.scalars import Namespace, scalars, tag
from esdmon.records import Alert, Esd, Report, Severity

_LEVELS: Mapping[Severity, str] = {"info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}
Cell = str | float | bool | None
Table = tuple[Sequence[str], list[list[Cell]]]
"""Names of the columns, and rows."""


@explain_wrong_calls
@final
class ScalarLoggerSink:
    """Log the numbers of each report in one call, by the tags of `esdmon.present.scalars`.

    Tags have only characters that every tracker accepts, so the functions need not change them. Without `alert`, the
    message of an alert is only in esdmon's log; `histograms` and `table` may be left out too.

    Args:
        log: called with the numbers by tag, and the step.
        flush: called to make the tracker write its buffered data.
        place: the tracker, or a text that names it. Two monitors that write to the same place use different tags. By
            default the sink itself.
        alert: called with an alert that begins, grows or ends, and the step.
        histograms: called with histograms of log₁₀ λ by tag, and the step; at a layer's first reading, at every fifth,
            and if its phase changes, with at most 24 histograms per report.
        table: called with a tag, a table of the layers and their phases, and the step, when the sink is closed.
        where: a path, address or command to view the written data, for the summary at the end of a run.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], object],
        flush: Callable[[], object] | None = None,
        *,
        place: object = None,
        alert: Callable[[Alert, int], object] | None = None,
        histograms: Callable[[dict[str, Esd], int], object] | None = None,
        table: Callable[[str, Table, int], object] | None = None,
        where: str = "",
    ) -> None:
        self._log = log
        self._flush = flush
        self._alert = alert
        self._histograms = histograms
        self._table = table
        self._where = where
        description = place if isinstance(place, str) else f"this {type(place).__name__}"
        self._namespace = Namespace(self if place is None else place, description)
        self._schedule = HistogramSchedule(most=MAX_HISTOGRAMS)
        self._report: Report | None = None

    def write(self, report: Report) -> None:
        """Log the numbers of a report in one call, and the histograms that are due."""
        self._report = report
        self._log(self._namespace.rename(scalars(report)), report.x)
        if self._histograms is not None:
            due = self._schedule.due(report)
            drawn = {self._namespace(tag("esd", each.name)): each.esd for each in due if each.esd is not None}
            if drawn:
                self._histograms(drawn, report.x)

    def alert(self, alert: Alert) -> None:
        """Write an alert, at the x-coordinate of the last report."""
        if self._alert is not None:
            self._alert(alert, alert.step if self._report is None else self._report.x)

    def rewind(self, _step: int) -> None:
        """Restart the schedule of the histograms. Nothing that was logged after the step is removed."""
        self._schedule = HistogramSchedule(most=MAX_HISTOGRAMS)

    def where(self) -> str:
        """Return a path, address or command to view the written data; an empty text if it is not known."""
        return self._where

    def flush(self) -> None:
        """Make the tracker write its buffered data."""
        if self._flush is not None:
            self._flush()

    def close(self) -> None:
        """Write the table of phases, and flush; the tracker stays open, since its owner closes it."""
        report, self._report = self._report, None
        try:
            if self._table is not None and report is not None:
                self._table(self._namespace("esdmon_phases"), (PHASE_COLUMNS, phase_rows(report)), report.x)
        finally:
            self._namespace.release()
            self.flush()


def title_of(alert: Alert) -> str:
    """Return a short title of an alert, `esdmon: rank_collapse firing`."""
    return f"esdmon: {alert.rule} {alert.state}"


def level_of(alert: Alert) -> str:
    """Return INFO, WARN or ERROR, as several trackers call the levels; an alert that has ended is INFO."""
    return _LEVELS[alert.severity]


@contextmanager
def counter_kept(owner: object, name: str) -> Iterator[None]:
    """Restore the step counter of a tracker when the block ends.

    A tracker that counts rows sets its counter to the step of a row with an explicit step, such as ours. Without the
    restored counter, rows that the user logs without a step would continue from our step.

    Args:
        owner: the object that has the counter.
        name: name of the attribute. An owner without this attribute is left unchanged.
    """
    before = getattr(owner, name, None)
    try:
        yield
    finally:
        if hasattr(owner, name):
            setattr(owner, name, before)
