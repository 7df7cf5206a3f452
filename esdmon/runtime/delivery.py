"""Define `Delivery`, which sends reports to the sinks, and alerts to the log, the sinks and the actions."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from esdmon.alerts import Actions
from esdmon.isolation import Faults
from esdmon.notice import notice
from esdmon.records import Alert, Report
from esdmon.records.outcome import outcome
from esdmon.records.text import count
from esdmon.records.timeline import Timeline
from esdmon.runtime.context import Context
from esdmon.sinks import Sink

_log = logging.getLogger("esdmon")
_NO_CREDIT = 10  # steps until credit for deferred work is checked again, if there was none: it grows slowly
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


@dataclass
class _Missing:
    """The readings that a sink has missed because it failed or was paused."""

    name: str
    sink: Sink  # kept alive, so that its id is not reused
    first_step: int
    readings: int = 0


@final
class Delivery:
    """Write records to each sink, isolated from the others, and carry out the actions of alerts.

    Args:
        sinks: the sinks, each with its name in messages.
        actions: functions that alerts call.
        context: what is shared with the other parts of the monitor.
    """

    def __init__(self, sinks: Sequence[tuple[str, Sink]], actions: Actions, context: Context) -> None:
        self.sinks = list(sinks)
        """The open sinks."""
        self._behind = {name for name, sink in self.sinks if hasattr(sink, "catch_up")}
        """The sinks that may have deferred work."""
        self._actions = actions
        self._faults, self._requests, self._budget = context.faults, context.requests, context.budget
        self.timeline = Timeline()
        """The history of the run, from the delivered reports and alerts."""
        self._next_catch_up = 0
        self._readings = 0
        self._missing: dict[int, _Missing] = {}

    def start(self, run: str, step: int) -> None:
        """Call `start(run)` of the sinks that have it: this run writes from now on."""
        self._next_catch_up = 0
        self._optional("start", step, run)

    def rewind(self, step: int, alerts: Sequence[Alert]) -> None:
        """Continue a run at a step: sinks remove later data, and sinks with `resume` get the history of the run.

        Args:
            step: the step at which the run is continued.
            alerts: the alerts up to that step.
        """
        self.timeline.rewind(step, alerts)
        self._optional("rewind", step, step)
        self._each(step, lambda sink: getattr(sink, "resume", _ignore)(self.timeline.copy()))

    def write(self, report: Report) -> None:
        """Write a report to each sink."""
        self.timeline.take(report)
        self._readings += 1
        for name, sink in self._each(report.step, lambda sink: sink.write(report), is_timed=True, heals=True):
            self._missing.setdefault(id(sink), _Missing(name, sink, report.step)).readings += 1
        self._behind |= {name for name, sink in self.sinks if hasattr(sink, "catch_up")}

    def alert(self, alert: Alert) -> None:
        """Log an alert, and write it to each sink."""
        self.timeline.alert(alert)
        _log.log(_LEVELS[alert.severity], "esdmon: %s", alert.message)
        self._each(alert.step, lambda sink: sink.alert(alert), is_timed=True)

    def act(self, alert: Alert) -> None:
        """Call the actions of alerts, and record requests to stop or to save."""
        actions = self._actions
        for who, call in actions.calls:
            with self._faults.isolated(who, alert.step, is_timed=True, pauses=False):
                call(alert)
        if alert.state == "firing" and alert.rule in actions.save_on:
            self._requests.add("save")
        if alert.state == "firing" and alert.rule in actions.stop_on:
            self._requests.add("stop")
        if actions.asks_to_stop is not None:
            with self._faults.isolated("asks_to_stop", alert.step, pauses=False):
                if actions.asks_to_stop(alert):
                    self._requests.add("stop")

    @property
    def next_catch_up(self) -> float:
        """Return the first step at which to call `catch_up`; ∞ if no sink has deferred work, such as pictures."""
        return self._next_catch_up if self._behind else math.inf

    def catch_up(self, step: int) -> None:
        """Let one sink do one piece of its deferred work, if the budget has credit."""
        if self._budget.credit <= 0:
            self._next_catch_up = step + _NO_CREDIT
            return
        name, sink = next((each for each in self.sinks if each[0] in self._behind), ("", None))
        self._behind.discard(name)
        if sink is not None and not self._faults.disabled(who := f"sink {name}"):
            with self._budget.spending(), self._faults.isolated(who, step, is_timed=True, heals=False):
                if getattr(sink, "catch_up")():  # noqa: B009 -- optional
                    self._behind.add(name)

    def flush(self, step: int) -> None:
        """Flush the sinks."""
        self._each(step, lambda sink: sink.flush())

    def close(self, step: int) -> None:
        """Close the sinks, and log a summary of the run and where its data is."""
        sinks = [sink for _, sink in self.sinks]
        close_sinks(self.sinks, self._faults, step)
        with self._faults.isolated("summary", step, pauses=False):
            lines = outcome(self.timeline, steps=step) if sinks else []
            lines += [
                f"{missing.name} has only {self._readings - missing.readings} of {count(self._readings, 'reading')}, "
                f"since it failed: the first that it lacks is of step {missing.first_step}. See monitor.errors."
                for missing in self._missing.values()
            ]
            empty = {key for key, missing in self._missing.items() if missing.readings == self._readings}
            places = [
                place for sink in sinks if id(sink) not in empty for place in [getattr(sink, "where", str)()] if place
            ]
            for line in [*lines, *([f"look: {'; '.join(places)}"] if lines and places else [])]:
                notice(line)

    def _optional(self, method: str, step: int, argument: str | int) -> None:
        self._each(step, lambda sink: getattr(sink, method, _ignore)(argument))

    def _each(
        self, step: int, call: Callable[[Sink], object], *, is_timed: bool = False, heals: bool = False
    ) -> list[tuple[str, Sink]]:
        """Call a function with each sink that is not paused, except sinks that are closed meanwhile.

        Returns:
            The sinks that were not called, and those that failed, with their names.
        """
        missed = []
        for name, sink in tuple(self.sinks):
            who = f"sink {name}"
            missed.append((name, sink))
            if (name, sink) in self.sinks and not self._faults.disabled(who):
                with self._faults.isolated(who, step, is_timed=is_timed, heals=heals):
                    call(sink)
                    missed.pop()
        return missed


def close_sinks(sinks: list[tuple[str, Sink]], faults: Faults, step: int) -> None:
    """Close all sinks, also paused ones, since they may hold a file, and empty the list."""
    while sinks:
        name, sink = sinks.pop(0)
        with faults.isolated(f"sink {name}", step, pauses=False, heals=False):
            sink.close()


def _ignore(_argument: object) -> None:
    """Do nothing; replaces a method that a sink does not have."""
