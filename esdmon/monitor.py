"""`Monitor`: when to read, and where the readings go. It computes nothing itself."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self, final

from esdmon.alerts import Actions, AlertBook, Silence
from esdmon.budget import Budget
from esdmon.faults import Fault, Faults, describe
from esdmon.records import Alert, LayerReport, Report
from esdmon.schedule import Schedule
from esdmon.sinks import Sink
from esdmon.state import Plain, Stateful, alert_from, to_plain

_log = logging.getLogger("esdmon")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}
_VERSION = 4
_POLL = 1e-3
PATIENCE = 30.0
"""Seconds that `flush`, `close` and `state_dict` wait for readings that are under way in this process."""
_PATIENCE_ELSEWHERE = 2.0  # for those on other ranks, which may have died
_PATIENCE_AT_EXIT = 5.0  # for those of a monitor that was never closed


class Readings(Stateful, Protocol):
    """What reads: `esdmon.readings.Readings`, or a helper on another rank."""

    latest: dict[str, LayerReport]
    dropped: int
    reports: bool
    """Whether reports come of it here, and not on another rank."""

    @property
    def under_way(self) -> bool:
        """Whether any are begun and not reported."""

    @property
    def under_way_here(self) -> bool:
        """Whether any of them are this process's."""

    def settle(self) -> None:
        """Wait for the device before what follows is measured."""

    def begin(self, step: int, host_step: int | None = None) -> None:
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
        book: AlertBook | None = None,
        actions: Actions | None = None,
        budget: Budget | None = None,
        faults: Faults | None = None,
        parts: Mapping[str, Stateful] | None = None,
        first_step: int = 0,
    ) -> None:
        self._readings = readings
        self._book = book or AlertBook()
        self._actions = actions or Actions()
        self._parts: dict[str, Stateful] = {"readings": readings, "alerts": self._book, **(parts or {})}
        self._schedule = schedule
        self._sinks = tuple(sinks)
        self._budget = budget or Budget(None)
        self._faults = faults or Faults()
        self._at_close: list[Callable[[], None]] = []
        self._steps = first_step
        self._closed = False
        self._report: Report | None = None
        self._alerts: list[Alert] = []
        self._should_stop = self._should_save = False
        self._silence = Silence(next((rule for rule in self._book.rules if rule.name == "stale_monitor"), None))
        self._process = os.getpid()
        self._is_told_of_the_fork = False
        _open.add(self)

    @property
    def report(self) -> Report | None:
        """The last reading; None before the first."""
        return self._report

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All alerts so far, the begun and the ended."""
        return tuple(self._alerts)

    @property
    def pending(self) -> tuple[Alert, ...]:
        """What a rule has found in the last readings, and in too few of them to be told as an alert."""
        return self._book.pending

    @property
    def should_stop(self) -> bool:
        """Whether an alert has fired that is to end the training (`stop_on=`), or a plugin has asked for it.

        A host's callback ends the training by itself; a loop of your own looks here. On rank 0 of a job only, which is
        to tell the others.
        """
        return self._should_stop

    def take_save_request(self) -> bool:
        """Whether an alert has fired, since this was last asked, on which a checkpoint is to be saved (`save_on=`)."""
        asked, self._should_save = self._should_save, False
        return asked

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

    def step(self, count: int = 1, *, host_step: int | None = None) -> bool:
        """Count a step, and read if it is due. The optimizer's hook calls it where `watch` was given an optimizer.

        Args:
            count: steps since the last call, where a host tells of several at once: due if any of them is.
            host_step: the host's own count, at which its loss is drawn; readings are drawn there too.

        Returns:
            Whether it was due: the same on all ranks of a job.
        """
        if self._closed or not self._is_of_this_process():
            return False
        self._steps += count
        self._budget.start()
        due = False
        with self._faults.isolated("schedule", self._steps):
            due = any(map(self._schedule, range(self._steps - count + 1, self._steps + 1)))
        if due and not self._faults.disabled("monitor"):
            with self._faults.isolated("monitor", self._steps):
                self._readings.settle()
                with self._budget.spending():
                    self._readings.begin(self._steps, host_step)
        self._take_finished()
        if due and self._readings.reports:
            self._raise(self._silence.due(self._steps))
        return due

    def flush(self, timeout: float = PATIENCE) -> None:
        """Wait for the readings that are under way, and let what was written be seen by others."""
        if self._is_of_this_process():
            self._finish(timeout)
            self._to_sinks("flush")

    def close(self, timeout: float = PATIENCE) -> None:
        """Remove the hooks, wait for the readings that are under way, close the sinks; again is harmless.

        Args:
            timeout: seconds to wait at most; what is not finished then is lost, and the log says so.
        """
        if self._closed or not self._is_of_this_process():
            return
        self._closed = True
        _open.discard(self)
        for undo in reversed(self._at_close):
            undo()
        try:
            self._finish(timeout, elsewhere=timeout)
            with self._faults.isolated("monitor", self._steps):
                self._readings.give_up()
            self._take_finished()
        finally:
            with self._faults.isolated("monitor", self._steps):
                self._readings.close()
            self._tell_if_nothing_was_read()
            self._to_sinks("close")
            self._sinks = ()

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called by `close()`: how a host takes its hooks back."""
        self._at_close.append(undo)

    def state_dict(self) -> Plain:
        """What a resumed run needs to go on as if it had not stopped: steps, readings, alerts, and how weights were.

        Plain data and tensors, some 40 kB for each matrix: `torch.load` reads it with weights_only. Readings that are
        under way are waited for.
        """
        if self._is_of_this_process():
            self._finish(PATIENCE)
        return {
            "version": _VERSION,
            "steps": self._steps,
            "alerts": [to_plain(alert) for alert in self._alerts],
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
            alerts = [alert_from(alert) for alert in state["alerts"]]
            parts = {name: state["parts"][name] for name in self._parts}
            for name, part in self._parts.items():
                part.load_state_dict(parts[name])
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"the state of a monitor is damaged: {describe(error)}"
            raise ValueError(msg) from error
        self._alerts = alerts
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
        readings = self._readings
        if not readings.reports or readings.latest or readings.dropped or self._faults.disabled("monitor"):
            return
        if self._steps:
            _log.warning("esdmon: closed after %d steps without a reading: choose a smaller every=.", self._steps)
        else:
            _log.warning("esdmon: closed without a step: give watch() the optimizer, or call monitor.step().")

    def _is_of_this_process(self) -> bool:
        """A process that was forked off has no part in a monitor, whose thread and files are its parent's."""
        if os.getpid() == self._process:
            return True
        if not self._is_told_of_the_fork:
            self._is_told_of_the_fork = True
            _log.warning("esdmon: this process was forked off that of the monitor, which does nothing here.")
        return False

    def _finish(self, timeout: float, *, elsewhere: float = _PATIENCE_ELSEWHERE) -> None:
        """Wait for what is under way; what is on other ranks may never come."""
        start = time.monotonic()
        self._take_finished()
        while self._readings.under_way:
            waited = time.monotonic() - start
            if waited > timeout or (waited > elsewhere and not self._readings.under_way_here):
                return
            time.sleep(_POLL)
            self._take_finished()

    def _take_finished(self) -> None:
        if self._readings.under_way:
            with self._faults.isolated("reports", self._steps), self._budget.spending():
                for report in self._readings.finished():
                    self._take(report)

    def _take(self, report: Report) -> None:
        changes = self._book.take(report, time=time.time())
        self._report = replace(report, firing=self._book.firing)
        self._to_sinks("write", self._report)
        for alert in (self._silence.report(report.step), *changes):
            self._raise(alert)

    def _raise(self, alert: Alert | None) -> None:
        if alert is None:
            return
        self._alerts.append(alert)
        _log.log(_LEVELS[alert.severity], "esdmon: %s", alert.message)
        self._to_sinks("alert", alert)
        actions = self._actions
        for who, call in actions.calls:
            with self._faults.isolated(who, alert.step, is_timed=True):
                call(alert)
        if alert.state == "firing":
            self._should_save |= alert.rule in actions.save_on
            self._should_stop |= alert.rule in actions.stop_on
        if actions.asks_to_stop is not None:
            with self._faults.isolated("asks_to_stop", alert.step):
                self._should_stop |= actions.asks_to_stop(alert)

    def _to_sinks(self, method: str, *record: Report | Alert | int) -> None:
        for name, sink in self._sinks:
            who = f"sink {name}"
            if method == "rewind" and not hasattr(sink, method):
                continue  # most sinks of others cannot, and need not
            # A sink that was shut off is still closed: it may hold a file.
            if method == "close" or not self._faults.disabled(who):
                with self._faults.isolated(who, self._steps, is_timed=method in ("write", "alert")):
                    getattr(sink, method)(*record)


_open: "weakref.WeakSet[Monitor]" = weakref.WeakSet()


def _close_all() -> None:
    """A loop that never closes its monitor still has what was read written, and its thread ended in order."""
    for monitor in list(_open):
        monitor.close(_PATIENCE_AT_EXIT)


# Before the interpreter waits for all threads of pools, which it does before the functions of atexit.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
