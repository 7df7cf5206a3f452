"""Send reports to the sinks, and alerts to the log, the sinks and whoever acts on them."""

import logging
from collections.abc import Sequence
from typing import final

from esdmon.alerts import Actions
from esdmon.isolation import Faults
from esdmon.records import Alert, Report
from esdmon.sinks import Sink

_log = logging.getLogger("esdmon")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


@final
class Delivery:
    """Write records to each sink apart from the others, and carry out the actions of alerts.

    Args:
        sinks: each with its name in messages.
        actions: what alerts cause.
        faults: where failures of sinks and actions are counted.
    """

    def __init__(self, sinks: Sequence[tuple[str, Sink]], actions: Actions, faults: Faults) -> None:
        self.sinks = list(sinks)
        """Those that are open."""
        self._behind = {name for name, sink in self.sinks if hasattr(sink, "catch_up")}
        """Sinks that may have deferred work."""
        self._actions = actions
        self._faults = faults
        self.should_stop = False
        self._should_save = False

    def take_save_request(self) -> bool:
        """Return whether an alert since the last call asks for a checkpoint."""
        asked, self._should_save = self._should_save, False
        return asked

    def start(self, run: str, step: int) -> None:
        """Tell the sinks which run writes from now on."""
        self._optional("start", step, run)

    def rewind(self, step: int) -> None:
        """Have the sinks drop what this run wrote after a step."""
        self._optional("rewind", step, step)

    def write(self, report: Report) -> None:
        """Write a report to each sink."""
        for name, sink in self.sinks:
            self._call(name, "write", sink, report.step, report)
            if hasattr(sink, "catch_up"):
                self._behind.add(name)

    def alert(self, alert: Alert) -> None:
        """Log an alert and write it to each sink; `act` does what it causes."""
        _log.log(_LEVELS[alert.severity], "esdmon: %s", alert.message)
        for name, sink in self.sinks:
            self._call(name, "alert", sink, alert.step, alert)

    def act(self, alert: Alert) -> None:
        """Call those who asked for alerts, and note requests to stop or to save."""
        actions = self._actions
        for who, call in actions.calls:
            with self._faults.isolated(who, alert.step, is_timed=True, pauses=False):
                call(alert)
        if alert.state == "firing":
            self._should_save |= alert.rule in actions.save_on
            self.should_stop |= alert.rule in actions.stop_on
        if actions.asks_to_stop is not None:
            with self._faults.isolated("asks_to_stop", alert.step, pauses=False):
                self.should_stop |= actions.asks_to_stop(alert)

    @property
    def is_behind(self) -> bool:
        """Whether a sink has deferred work, such as pictures to draw."""
        return bool(self._behind)

    def catch_up(self, step: int) -> None:
        """Let one sink do one piece of its deferred work."""
        for name, sink in self.sinks:
            if name in self._behind:
                self._behind.discard(name)
                if not self._faults.disabled(f"sink {name}"):
                    with self._faults.isolated(f"sink {name}", step, is_timed=True, heals=False):
                        if getattr(sink, "catch_up")():  # noqa: B009 -- optional
                            self._behind.add(name)
                return

    def flush(self, step: int) -> None:
        """Let what was written be seen by others."""
        for name, sink in self.sinks:
            self._call(name, "flush", sink, step)

    def close(self, step: int) -> None:
        """Close the sinks."""
        close_sinks(self.sinks, self._faults, step)

    def _optional(self, method: str, step: int, argument: str | int) -> None:
        for name, sink in self.sinks:
            if hasattr(sink, method):
                self._call(name, method, sink, step, argument)

    def _call(self, name: str, method: str, sink: Sink, step: int, *arguments: Report | Alert | str | int) -> None:
        who = f"sink {name}"
        if not self._faults.disabled(who):
            is_main = method in ("write", "alert")
            with self._faults.isolated(who, step, is_timed=is_main, heals=method == "write"):
                getattr(sink, method)(*arguments)


def close_sinks(sinks: list[tuple[str, Sink]], faults: Faults, step: int) -> None:
    """Close sinks and empty the list; also one that is paused: it may hold a file."""
    while sinks:
        name, sink = sinks.pop(0)
        with faults.isolated(f"sink {name}", step, pauses=False, heals=False):
            sink.close()
