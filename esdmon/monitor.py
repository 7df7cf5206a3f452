"""`Monitor`: when to read, and where the readings go. It computes nothing itself."""

import atexit
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, final

from esdmon.alerts import AlertBook, AlertRule
from esdmon.budget import Budget
from esdmon.faults import Fault, Faults, describe
from esdmon.records import Alert, LayerReport, Report
from esdmon.schedule import Schedule
from esdmon.sinks import Sink
from esdmon.state import Plain, Stateful, alert_from, to_plain

_log = logging.getLogger("esdmon")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}
_VERSION = 3
_POLL = 1e-3
PATIENCE = 30.0
"""Seconds that `flush`, `close` and `state_dict` wait for readings that are under way."""


class Readings(Stateful, Protocol):
    """What reads: `esdmon.readings.Readings`, or a helper on another rank."""

    history: dict[str, deque[LayerReport]]
    dropped: int
    reports: bool
    """Whether reports come of it here, and not on another rank."""

    @property
    def under_way(self) -> bool:
        """Whether any are begun and not reported."""

    def settle(self) -> None:
        """Wait for the device before what follows is measured."""

    def begin(self, step: int) -> None:
        """Begin the readings of a due step."""

    def finished(self) -> Iterator[Report]:
        """Reports that are complete, in step order."""

    def give_up(self) -> None:
        """Wait no more for what is under way."""

    def close(self) -> None:
        """Free what is held."""


@final
class Monitor:
    """Counts optimizer steps and, at each that is due, has readings taken; their reports go to the rules and the sinks.

    Made by `esdmon.watch`. Nothing that fails inside reaches the training loop, unless `faults.strict`. All that is
    written is written by the thread that calls `step`, in step order.
    """

    def __init__(
        self,
        readings: Readings,
        *,
        schedule: Schedule,
        sinks: Sequence[tuple[str, Sink]] = (),
        rules: Iterable[AlertRule] = (),
        on_alert: Callable[[Alert], None] | None = None,
        budget: Budget | None = None,
        faults: Faults | None = None,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        self._readings = readings
        self._parts = {"readings": readings} | dict(parts or {})
        self._schedule = schedule
        self._sinks = tuple(sinks)
        self._rules = tuple(rules)
        self._on_alert = on_alert
        self._budget = budget or Budget(None)
        self._faults = faults or Faults()
        self._book = AlertBook()
        self._at_close: list[Callable[[], None]] = []
        self._steps = 0
        self._closed = False
        self._report: Report | None = None
        self._alerts: list[Alert] = []
        self._process = os.getpid()
        # A loop that never closes its monitor still has all that was read written, and its thread ended in order.
        self._exit = _close_at_exit(self)

    @property
    def report(self) -> Report | None:
        """The last reading; None before the first."""
        return self._report

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All alerts so far, the begun and the ended."""
        return tuple(self._alerts)

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The parts that have failed, each with its last error and how often."""
        return tuple(self._faults)

    @property
    def steps(self) -> int:
        """Optimizer steps counted."""
        return self._steps

    @property
    def dropped(self) -> int:
        """Readings that were left out because too many were under way, or that came to nothing."""
        return self._readings.dropped

    @property
    def overhead(self) -> float:
        """The share of the run's time that watching has taken so far; NaN before the first step."""
        return self._budget.overhead

    def step(self) -> None:
        """Count a step, and read if it is due. The optimizer's hook calls it where `watch` was given an optimizer."""
        if self._closed or os.getpid() != self._process:  # a process forked off this one has no part in it
            return
        self._steps += 1
        self._budget.start()
        with self._faults.isolated("monitor", self._steps):
            due = self._schedule(self._steps) and not self._faults.disabled("monitor")
            if due:
                self._readings.settle()
            if due or self._readings.under_way:
                with self._budget.spending():
                    if due:
                        self._readings.begin(self._steps)
                    self._take_finished()

    def flush(self, timeout: float = PATIENCE) -> None:
        """Wait for the readings that are under way, and let what was written be seen by others."""
        self._finish(timeout)
        self._to_sinks("flush")

    def close(self, timeout: float = PATIENCE) -> None:
        """Remove the hooks, wait for the readings that are under way, close the sinks; again is harmless.

        Args:
            timeout: seconds to wait at most; what is not finished then is lost, and the log says so.
        """
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._exit()
        for undo in reversed(self._at_close):
            undo()
        try:
            self._finish(timeout)
            with self._faults.isolated("monitor", self._steps):
                self._readings.give_up()
                self._take_finished()
        finally:
            with self._faults.isolated("monitor", self._steps):
                self._readings.close()
            self._tell_if_nothing_was_read()
            self._to_sinks("close")

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called by `close()`: how a host takes its hooks back."""
        self._at_close.append(undo)

    def state_dict(self) -> Plain:
        """What a resumed run needs to go on as if it had not stopped: steps, readings, alerts, and how weights were.

        Plain data and tensors, a few kB for each matrix: `torch.load` reads it with weights_only. Readings that are
        under way are waited for.
        """
        self._finish(PATIENCE)
        return {
            "version": _VERSION,
            "steps": self._steps,
            "alerts": [to_plain(alert) for alert in self._alerts],
            "firing": [to_plain(alert) for alert in self._book.firing.values()],
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: object) -> None:
        """Go on from `state_dict()`; sinks that can are told to drop what was written after that step.

        Raises:
            ValueError: for what is no such state, or is that of another version; nothing is changed then.
        """
        steps = state.get("steps") if isinstance(state, Mapping) and state.get("version") == _VERSION else None
        if not isinstance(state, Mapping) or not isinstance(steps, int) or steps < 0:
            shown = sorted(map(str, state)) if isinstance(state, Mapping) else state
            msg = f"the state of a monitor has version {_VERSION} and a number of steps, got {shown!r}"
            raise ValueError(msg)
        try:
            alerts, firing = ([alert_from(alert) for alert in state[key]] for key in ("alerts", "firing"))
            parts = {name: state["parts"][name] for name in self._parts}
            for name, part in self._parts.items():
                part.load_state_dict(parts[name])
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"the state of a monitor is damaged: {describe(error)}"
            raise ValueError(msg) from error
        self._alerts = alerts
        self._book.firing = {alert.id: alert for alert in firing}
        self._steps = steps
        self._to_sinks("rewind", steps)

    def __enter__(self) -> Self:
        """The monitor; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, also when the loop raised."""
        self.close()

    def _tell_if_nothing_was_read(self) -> None:
        if not self._readings.reports or self._report is not None or self._faults.disabled("monitor"):
            return
        if self._steps:
            _log.warning("esdmon: closed after %d steps without a reading: choose a smaller every=.", self._steps)
        else:
            _log.warning("esdmon: closed without a step: give watch() the optimizer, or call monitor.step().")

    def _finish(self, timeout: float) -> None:
        """Wait for what is under way; strict or not, a wait ends."""
        until = time.monotonic() + timeout
        with self._faults.isolated("monitor", self._steps), self._budget.spending():
            self._take_finished()
            while self._readings.under_way and time.monotonic() < until:
                time.sleep(_POLL)
                self._take_finished()

    def _take_finished(self) -> None:
        for report in self._readings.finished():
            self._take(report)

    def _take(self, report: Report) -> None:
        self._report = report
        self._to_sinks("write", report)
        for alert in self._ask_rules(report.step):
            self._alerts.append(alert)
            _log.log(_LEVELS[alert.severity], "esdmon: %s", alert.message)
            self._to_sinks("alert", alert)
            if self._on_alert is not None:
                self._on_alert(alert)

    def _ask_rules(self, step: int) -> list[Alert]:
        found: list[Alert] = []
        asked: list[str] = []
        for rule in self._rules:
            who = f"rule {rule.name}"
            if not self._faults.disabled(who):
                with self._faults.isolated(who, step):
                    found += rule.find(self._readings.history)
                    asked.append(rule.name)
        return self._book.update(found, rules=asked, step=step, time=time.time())

    def _to_sinks(self, method: str, *record: Report | Alert | int) -> None:
        for name, sink in self._sinks:
            who = f"sink {name}"
            if method == "rewind" and not hasattr(sink, method):
                continue  # most sinks of others cannot, and need not
            # A sink that was shut off is still closed: it may hold a file.
            if method == "close" or not self._faults.disabled(who):
                with self._faults.isolated(who, self._steps):
                    getattr(sink, method)(*record)


def _close_at_exit(monitor: Monitor) -> Callable[[], None]:
    """Have a monitor closed when the interpreter ends, unless it is gone by then; what is returned takes that back."""
    alive = weakref.ref(monitor)

    def close() -> None:
        found = alive()
        if found is not None:
            found.close()

    atexit.register(close)
    return lambda: atexit.unregister(close)
