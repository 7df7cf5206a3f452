"""Keep records in memory, for notebooks and tests."""

from typing import final

from esdmon.calls import explain_wrong_calls
from esdmon.records import Alert, Report


@explain_wrong_calls
@final
class MemorySink:
    """Keep all reports and alerts in lists.

    `sink = MemorySink(); watch(..., sinks=[sink]); sink.reports[-1]`.
    """

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.alerts: list[Alert] = []

    def write(self, report: Report) -> None:
        """Append the report."""
        self.reports.append(report)

    def alert(self, alert: Alert) -> None:
        """Append the alert."""
        self.alerts.append(alert)

    def rewind(self, step: int) -> None:
        """Remove reports and alerts of later steps."""
        self.reports = [report for report in self.reports if report.step <= step]
        self.alerts = [alert for alert in self.alerts if alert.step <= step]

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: the lists stay readable."""
