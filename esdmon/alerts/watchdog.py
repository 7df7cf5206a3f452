"""A monitor from which no reports come says nothing of itself: nobody asks the rules. So it is told from outside."""

from __future__ import annotations

from typing import final

from esdmon.alerts.messages import Case, fired, resolved
from esdmon.alerts.rule import AlertRule
from esdmon.records import Alert

PATIENCE = 50
"""Due steps without a report, where the rule does not say how many. Our choice."""


@final
class Watchdog:
    """Count the due steps since the last report; the alert is that of `stale_monitor`, after as many as its threshold.

    Args:
        rule: in whose name it speaks; None where that is not asked.
    """

    def __init__(self, rule: AlertRule | None) -> None:
        self._rule = rule
        due_steps = PATIENCE if rule is None else rule.thresholds.get("due_steps", PATIENCE)
        self._patience = due_steps if isinstance(due_steps, int) else PATIENCE
        self._since = self._due = 0
        self._alert: Alert | None = None

    def due(self, step: int) -> Alert | None:
        """Take that a step was due. The alert, where too many have been since the last report."""
        self._since = self._since if self._due else step
        self._due += 1
        if self._rule is None or self._due != self._patience:
            return None
        # Not that rule's own severity: that readings are old is a notice, that none come is more.
        what = f"no report has come in {self._due} due steps: readings hang, fail or are paused, see monitor.errors"
        case = Case(wrong=self._due, since=self._since, what=what)
        self._alert = fired(self._rule, "warning", {"": case}, step)
        return self._alert

    def report(self, step: int) -> Alert | None:
        """Take that a report has come. The end of the alert, where there was one."""
        ended, self._alert, self._due = self._alert, None, 0
        return None if ended is None else resolved(ended, step)
