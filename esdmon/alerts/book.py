"""Which alerts are open: each is told once when it begins and once when it ends."""

from collections.abc import Iterable
from dataclasses import replace
from typing import final

from esdmon.records import Alert


@final
class AlertBook:
    """The alerts that hold, by id."""

    def __init__(self) -> None:
        self.firing: dict[str, Alert] = {}

    def update(self, found: Iterable[Alert], *, rules: Iterable[str], step: int, time: float) -> list[Alert]:
        """What has changed: alerts found now and not before, and those of these rules that are found no more.

        Args:
            found: all that the rules find now.
            rules: the names of the rules that were asked; the alerts of others (one that failed) stay as they are.
            step: of the reading.
            time: seconds since the epoch, stamped on what has changed: rules are pure and know no clock.
        """
        now = {alert.id: alert for alert in found}
        asked = set(rules)
        ended = [old for id_, old in self.firing.items() if old.rule in asked and id_ not in now]
        begun = [replace(alert, time=time) for id_, alert in now.items() if id_ not in self.firing]
        for old in ended:
            del self.firing[old.id]
        self.firing.update({alert.id: alert for alert in begun})
        return [_resolved(old, step, time) for old in ended] + begun


def _resolved(alert: Alert, step: int, time: float) -> Alert:
    message = f"{alert.layer}: {alert.rule} no longer holds at step {step} (it held since step {alert.since})."
    return replace(alert, state="resolved", severity="info", step=step, time=time, message=message)
