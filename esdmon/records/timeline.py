"""Define `Timeline`: the phases of each layer with their first steps, and the alerts that have fired and ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, final

from esdmon.records.alert import Alert, Severity
from esdmon.records.report import Report
from esdmon.records.serialization import Plain, known

SEVERITIES: Sequence[Severity] = ("critical", "error", "warning", "info")
"""The severities of alerts, the worst first."""


class Stage(NamedTuple):
    """A stretch of a run in which a layer has one state."""

    step: int
    """Step of the first reading in that state."""
    state: str
    """Name of the shown phase, or a status other than ok."""


@dataclass(frozen=True, slots=True)
class Episode:
    """An alert from its beginning to its end."""

    first: Alert
    """The alert when it first fired."""
    alert: Alert
    """The alert when it last fired; if it grew, with all its layers."""
    ended: int | None = None
    """Step at which the alert was resolved; None while it fires."""

    @property
    def began(self) -> int:
        """Return the step at which the alert first fired."""
        return self.first.step


@final
class Timeline:
    """The course of a run, built up report by report. It keeps one record for each change, and not the reports."""

    def __init__(self) -> None:
        self.stages: dict[str, list[Stage]] = {}
        """The states of each layer, in order."""
        self.episodes: list[Episode] = []
        """Alerts in the order in which they first fired."""
        self.alerts: list[Alert] = []
        """Each beginning, growth and end of an alert, in order."""
        self.last: Report | None = None
        """The last report."""

    def take(self, report: Report) -> None:
        """Add a report."""
        self.last = report
        for layer in report.new:
            stages = self.stages.setdefault(layer.name, [])
            if not stages or stages[-1].state != layer.state:
                stages.append(Stage(layer.step, layer.state))

    def alert(self, alert: Alert) -> None:
        """Add an alert that has begun, grown or ended."""
        self.alerts.append(alert)
        open_ones = (n for n, each in enumerate(self.episodes) if each.ended is None and each.alert.id == alert.id)
        number = next(open_ones, None)
        if number is None and alert.state == "firing":
            self.episodes.append(Episode(alert, alert))
        elif number is not None and alert.state == "firing":
            self.episodes[number] = replace(self.episodes[number], alert=alert)
        elif number is not None:
            self.episodes[number] = replace(self.episodes[number], ended=alert.step)

    def rewind(self, step: int, alerts: Sequence[Alert] | None = None) -> None:
        """Remove everything after a step.

        Args:
            step: the step at which the run is continued.
            alerts: alerts of the run, if another process has raised them; None for the alerts of this timeline.
        """
        self.stages = {name: [stage for stage in stages if stage.step <= step] for name, stages in self.stages.items()}
        earlier = [alert for alert in (self.alerts if alerts is None else alerts) if alert.step <= step]
        self.alerts, self.episodes = [], []
        for alert in earlier:
            self.alert(alert)

    def copy(self) -> Self:
        """Return an independent copy."""
        copied = type(self)()
        copied.stages = {name: list(stages) for name, stages in self.stages.items()}
        copied.episodes, copied.alerts, copied.last = list(self.episodes), list(self.alerts), self.last
        return copied

    def state_dict(self) -> Plain:
        """Return the stages as plain data. A monitor saves its alerts itself."""
        return {"stages": {name: [list(stage) for stage in stages] for name, stages in self.stages.items()}}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse what `state_dict` returned, and return a function that restores it; see `Stateful`."""
        stages = {
            str(name): [Stage(int(step), str(shown)) for step, shown in saved]
            for name, saved in known(state, ("stages",))["stages"].items()
        }

        def restore() -> None:
            self.stages = stages

        return restore

    @property
    def firing(self) -> list[Episode]:
        """Return the alerts that have not ended, the worst first."""
        open_ones = (episode for episode in self.episodes if episode.ended is None)
        return sorted(open_ones, key=lambda episode: SEVERITIES.index(episode.alert.severity))
