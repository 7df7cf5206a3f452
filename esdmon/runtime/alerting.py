"""Define `Alerting`, which checks the reports of a run by the alert rules, keeps the alerts, and sends them."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import final

from esdmon.alerts import AlertManager, Watchdog
from esdmon.records import Alert, Report
from esdmon.runtime.delivery import Delivery


@final
class Alerting:
    """Keep the alerts of a run: those of rules, and the alert on missing reports.

    Args:
        manager: checks the rules, and decides when an alert begins and ends.
        out: sends alerts to the log, the sinks and the actions.
    """

    def __init__(self, manager: AlertManager, out: Delivery) -> None:
        self._manager = manager
        self._out = out
        self._watchdog = Watchdog(next((rule for rule in manager.rules if rule.name == "stale_monitor"), None))
        self.alerts: list[Alert] = []
        """All alerts so far, also those that are resolved."""

    @property
    def pending(self) -> tuple[Alert, ...]:
        """Return the findings that have not yet persisted for enough readings to fire."""
        return self._manager.pending

    def check(self, report: Report) -> tuple[Report, Sequence[Alert]]:
        """Check a report; return it with the alerts that fire now, and the alerts that begin, change or end with it."""
        changes = self._manager.take(report, time=time.time())
        return replace(report, firing=self._manager.firing), changes

    def send(self, report: Report, changes: Iterable[Alert]) -> None:
        """Send the alerts that `check` has returned for a report, once the report is written."""
        self._send([self._watchdog.report(report.step), *changes])

    def due(self, step: int) -> None:
        """Count a due step, and send the alert that no report arrives, if this is the step for it."""
        self._send([self._watchdog.due(step)])

    def _send(self, found: Iterable[Alert | None]) -> None:
        """Write all alerts of a report before any action, so that an action that saves a state saves them too."""
        alerts = [alert for alert in found if alert is not None]
        self.alerts += alerts
        for alert in alerts:
            self._out.alert(alert)
        for alert in alerts:
            self._out.act(alert)
