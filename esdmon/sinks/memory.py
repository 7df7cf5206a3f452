"""A sink that keeps what it was given: for notebooks and tests."""

from typing import final

from esdmon.records import Alert, Report


@final
class MemorySink:
    """`sink = MemorySink(); watch(..., sinks=[sink]); sink.reports[-1]`."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.alerts: list[Alert] = []

    def write(self, report: Report) -> None:
        """Keep the report."""
        self.reports.append(report)

    def alert(self, alert: Alert) -> None:
        """Keep the alert."""
        self.alerts.append(alert)

    def rewind(self, step: int) -> None:
        """Forget what came after a step."""
        self.reports = [report for report in self.reports if report.step <= step]
        self.alerts = [alert for alert in self.alerts if alert.step <= step]

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
