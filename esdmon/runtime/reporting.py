"""Define `Reporting`, which waits for complete reports, checks them by the rules, and writes them."""

import time
from typing import final

from esdmon.records import Report
from esdmon.runtime.alerting import Alerting
from esdmon.runtime.context import Context
from esdmon.runtime.delivery import Delivery
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.readings import Readings

_POLL = 1e-3  # seconds between two checks of unfinished readings


@final
class Reporting:
    """Check and write complete reports, in step order, in the calling thread.

    An action of an alert may call the monitor again, to save a checkpoint or to close it. Then the outer call
    continues: it delivers complete reports, and closes the sinks after all of them have the report.

    Args:
        readings: makes the reports.
        alerting: checks them, and sends alerts.
        out: writes them.
        escalation: records unconfirmed findings; None if nothing is read between scheduled steps.
        context: what is shared with the other parts of the monitor.
    """

    def __init__(
        self,
        readings: Readings,
        alerting: Alerting,
        out: Delivery,
        *,
        escalation: Escalation | None,
        context: Context,
    ) -> None:
        self._readings = readings
        self._alerting = alerting
        self._out = out
        self._escalation = escalation
        self._hints, self._faults, self._budget = context.hints, context.faults, context.budget
        self._is_delivering = self._was_report = False
        self._closes_at: int | None = None
        """The step of a `close` call during the delivery of reports."""
        self.last: Report | None = None
        """The last report; None before the first."""

    def advance(self, step: int, *, waiting: bool = False) -> None:
        """Continue readings whose copies have arrived from an accelerator; see `Readings.advance`."""
        advance = self._readings.advance
        self._faults.call("transfers", step, advance, waiting=waiting, default=None, pauses=False)

    @property
    def next_step(self) -> float:
        """Return the first step, besides due ones, at which `at_step` may have anything to do; 0 for the next."""
        return 0 if self._was_report or self._readings.under_way else self._out.next_catch_up

    def at_step(self, step: int, *, is_due: bool) -> None:
        """Check and write the reports that are complete; at other steps let sinks catch up with deferred work."""
        before = self.last
        self.take(step)
        is_report, was_report = self.last is not before, self._was_report
        self._was_report = is_report
        # Not in the step of a report, unless each step is one.
        if step >= self._out.next_catch_up and (was_report or not is_report):
            self._out.catch_up(step)
        if is_due and self._readings.reports:
            self._alerting.due(step)

    def take(self, step: int) -> None:
        """Check and write the reports that are complete by now."""
        if self._readings.under_way and not self._is_delivering:
            self._is_delivering = True
            try:
                with self._faults.isolated("reports", step, pauses=False), self._budget.spending():
                    for report in self._readings.finished():
                        self._take(report)
            finally:
                self._is_delivering = False
                if self._closes_at is not None:
                    self._out.close(self._closes_at)

    def wait(self, step: int, seconds: float, *, elsewhere: float) -> None:
        """Wait some seconds for unfinished readings; fewer for those of other ranks, which may be dead."""
        start = time.monotonic()
        self.take(step)
        while self._readings.under_way and not self._is_delivering:
            waited = time.monotonic() - start
            if waited > seconds or (waited > elsewhere and not self._readings.under_way_here):
                return
            time.sleep(_POLL)
            self.advance(step, waiting=True)
            self.take(step)

    def close(self, step: int) -> None:
        """Close the sinks; if a sink or an action has called this, wait until the other sinks have the report."""
        if self._is_delivering:
            self._closes_at = step
        else:
            self._out.close(step)

    def _take(self, report: Report) -> None:
        checked, changes = self._alerting.check(report)
        if self._escalation is not None:
            self._escalation.report(report, self._alerting.pending)
        self.last = checked
        self._hints.report(checked)
        self._out.write(checked)
        self._alerting.send(checked, changes)
