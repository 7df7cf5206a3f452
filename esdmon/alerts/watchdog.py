"""Raise an alert when no report arrives: rules run only on reports, so missing reports need a separate check."""

from __future__ import annotations

from dataclasses import replace
from typing import final

from esdmon.alerts.messages import Case, fired, resolved
from esdmon.alerts.rule import AlertRule
from esdmon.records import Alert

DUE_STEPS_WITHOUT_REPORT = 50
"""Due steps without a report before the alert, where the rule sets no `due_steps`. Our choice."""

_ADVICE = "See monitor.errors; where that is empty, use mode='sync', or increase every=."


@final
class Watchdog:
    """Counts the due steps since the last report and raises `stale_monitor` when there are too many.

    Args:
        rule: the rule `stale_monitor`, which gives the threshold `due_steps` and the advice; None disables the check.
    """

    def __init__(self, rule: AlertRule | None) -> None:
        self._rule = rule
        due_steps = rule.thresholds.get("due_steps") if rule is not None else None
        self._limit = due_steps if isinstance(due_steps, int) else DUE_STEPS_WITHOUT_REPORT
        self._since = self._due = self._last = 0
        self._alert: Alert | None = None

    def due(self, step: int) -> Alert | None:
        """Count a due step, and return the alert if this one reaches the limit."""
        self._since = self._since if self._due else step
        self._due += 1
        self._last = step
        if self._rule is None or self._due != self._limit:
            return None
        # A warning, although the rule is a notice: under a budget old readings are normal, but missing ones are not.
        what = f"no report in {self._due} due steps: readings hang, fail, are paused, or find no idle core"
        case = Case(wrong=self._due, since=self._since, what=what)
        self._alert = fired(replace(self._rule, advice=_ADVICE), "warning", {"": case}, step)
        return self._alert

    def report(self, step: int) -> Alert | None:
        """Reset the count when a report arrives, and return the end of the alert if there was one.

        The report may be of a much earlier step: the alert ends at the due step at which the report arrives.
        """
        ended, self._alert, self._due = self._alert, None, 0
        return None if ended is None else resolved(ended, max(step, self._last))
