"""`Monitor`: decide when to read, and pass the readings on. It computes nothing itself."""

import atexit
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self, final

from esdmon.alerts import Actions, AlertManager, Watchdog
from esdmon.isolation import Fault, Faults, describe
from esdmon.records import Alert, LayerReport, Report
from esdmon.records.serialization import Plain, Stateful, alert_from_plain, to_plain
from esdmon.runtime.delivery import Delivery, close_sinks
from esdmon.schedule import Schedule
from esdmon.schedule.budget import Budget
from esdmon.sinks import Sink

_log = logging.getLogger("esdmon")
_VERSION = 4
_POLL = 1e-3
CLOSE_TIMEOUT = 30.0
"""Seconds that `flush` and `close` wait for readings that are under way in this process."""
_TIMEOUT_ELSEWHERE = 2.0  # for those on other ranks, which may have died
_TIMEOUT_AT_EXIT = 5.0  # for those of a monitor that was never closed


class Pipeline(Stateful, Protocol):
    """What reads: `esdmon.runtime.pipeline.ReadingPipeline`, or a `RemoteReader` on another rank."""

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
        readings: Pipeline,
        *,
        schedule: Schedule,
        sinks: Sequence[tuple[str, Sink]] = (),
        book: AlertManager | None = None,
        actions: Actions | None = None,
        budget: Budget | None = None,
        faults: Faults | None = None,
        parts: Mapping[str, Stateful] | None = None,
        first_step: int = 0,
        no_step: str = "give watch() the optimizer, or call monitor.step()",
    ) -> None:
        self._readings = readings
        self._book = book or AlertManager()
        self._parts: dict[str, Stateful] = {"readings": readings, "alerts": self._book, **(parts or {})}
        self._schedule = schedule
        self._budget = budget or Budget(None)
        self._faults = faults or Faults()
        self._out = Delivery(sinks, actions or Actions(), self._faults)
        self._delivering = False
        self._no_step = no_step
        self._is_hooked = self._has_told_of_two_clocks = False
        self._run = uuid.uuid4().hex[:8]
        self._at_close: list[Callable[[], None]] = []
        self._steps = first_step
        self._closed = False
        self._report: Report | None = None
        self._was_report = False
        self._alerts: list[Alert] = []
        self._silence = Watchdog(next((rule for rule in self._book.rules if rule.name == "stale_monitor"), None))
        self._process = os.getpid()
        self._is_told_of_the_fork = False
        self._out.start(self._run, first_step)
        # A monitor that nobody holds any more leaves no file or thread of its sinks behind.
        weakref.finalize(self, close_sinks, self._out.sinks, Faults(), first_step).atexit = False
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
        return self._out.should_stop

    def take_save_request(self) -> bool:
        """Return whether an alert of `save_on=` has fired since the last call: a checkpoint is to be saved."""
        return self._out.take_save_request()

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The parts that have failed, each with its last error and how often."""
        return tuple(self._faults)

    @property
    def steps(self) -> int:
        """Optimizer steps counted."""
        return self._steps

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

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
        if self._is_hooked:
            self._tell_of_two_clocks()
            return False
        return self._count(count, host_step)

    def hooked_step(self) -> bool:
        """Count a step of the optimizer: for its hook, after which calls of `step` by the loop are ignored."""
        self._is_hooked = True
        return self._count(1, None)

    def _count(self, count: int, host_step: int | None) -> bool:
        if self._closed or not self._is_of_this_process():
            return False
        self._steps += count
        self._budget.start()
        due = self._is_due(count)
        if due:
            self._faults.advance()
            self._begin(host_step)
        before = self._report
        self._take_finished()
        is_report, was_report = self._report is not before, self._was_report
        self._was_report = is_report
        # Not in the step of a report, unless each step is one.
        if self._out.is_behind and (was_report or not is_report):
            self._catch_up()
        if due and self._readings.reports:
            self._raise([self._silence.due(self._steps)])
        return due

    def _is_due(self, count: int) -> bool:
        """Ask the schedule for each of the last steps."""
        with self._faults.isolated("schedule", self._steps, pauses=False):
            return any(map(self._schedule, range(self._steps - count + 1, self._steps + 1)))
        return False

    def _begin(self, host_step: int | None) -> None:
        if not self._faults.disabled("monitor"):
            with self._faults.isolated("monitor", self._steps):
                self._readings.settle()
                with self._budget.spending():
                    self._readings.begin(self._steps, host_step)

    def _catch_up(self) -> None:
        """Let a sink do deferred work between reports, a piece at a step, where the budget has credit."""
        if self._budget.credit > 0:
            with self._budget.spending():
                self._out.catch_up(self._steps)

    def flush(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait for the readings that are under way, and let what was written be seen by others."""
        if self._is_of_this_process():
            self._finish(timeout)
            self._out.flush(self._steps)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Remove the hooks, wait for the readings that are under way, close the sinks; again is harmless.

        Args:
            timeout: seconds to wait at most; what is not finished then is lost, and the log says so.
        """
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        _open.discard(self)
        for undo in reversed(self._at_close):
            with self._faults.isolated("close", self._steps, pauses=False):
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
            self._out.close(self._steps)

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called by `close()`: how a host takes its hooks back."""
        self._at_close.append(undo)

    def state_dict(self) -> Plain:
        """Return what a resumed run needs to go on: steps, readings, alerts, and samples of the weights.

        Plain data and tensors, some 40 kB for each matrix: `torch.load` reads it with weights_only. It waits for
        nothing: of readings that are under way the resumed run knows nothing, and takes those matrices next.
        """
        if self._is_of_this_process():
            self._take_finished()
        return {
            "version": _VERSION,
            "run": self._run,
            "steps": self._steps,
            "alerts": [to_plain(alert) for alert in self._alerts],
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: object) -> None:
        """Go on from `state_dict()`; sinks that can drop what that run wrote after it.

        Raises:
            ValueError: for anything else than such a state of this version, or a damaged one; nothing is changed then.
        """
        steps = state.get("steps") if isinstance(state, Mapping) and state.get("version") == _VERSION else None
        if not isinstance(state, Mapping) or not isinstance(steps, int) or steps < 0:
            shown = sorted(map(str, state)) if isinstance(state, Mapping) else state
            msg = f"the state of a monitor has version {_VERSION} and a number of steps, got {shown!r}"
            raise ValueError(msg)
        try:
            alerts = [alert_from_plain(alert) for alert in state["alerts"]]
            run = str(state.get("run", self._run))
            take_over = [part.prepare(state["parts"][name]) for name, part in self._parts.items()]
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            msg = f"the state of a monitor is damaged: {describe(error)}"
            raise ValueError(msg) from error
        for part in take_over:
            part()
        self._alerts, self._steps, self._run = alerts, steps, run
        self._out.start(run, steps)
        self._out.rewind(steps)

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
        if not readings.reports or readings.latest or readings.dropped or any(self._faults):
            return
        if self._steps:
            _log.warning(
                "esdmon: nothing was read in %d steps, since none was due: choose a smaller every=.", self._steps
            )
        else:
            _log.warning("esdmon: nothing was read, since no step was counted: %s.", self._no_step)

    def _tell_of_two_clocks(self) -> None:
        if not self._has_told_of_two_clocks:
            self._has_told_of_two_clocks = True
            _log.warning(
                "esdmon: monitor.step() was called, but watch() was given the optimizer and counts its steps already: "
                "the call is ignored. Leave out one of the two."
            )

    def _is_of_this_process(self) -> bool:
        """Return whether this process made the monitor; a fork has no part in its thread and files.

        A fork that steps logs that once. One that only ends, such as a worker of a DataLoader, logs nothing.
        """
        if os.getpid() == self._process:
            return True
        if not self._is_told_of_the_fork:
            self._is_told_of_the_fork = True
            _log.warning(
                "esdmon: this process was forked from the one that called watch(), so its steps are not counted: call "
                "watch() in the process that trains."
            )
        return False

    def _finish(self, timeout: float, *, elsewhere: float = _TIMEOUT_ELSEWHERE) -> None:
        """Wait for what is under way; what is on other ranks may never come."""
        start = time.monotonic()
        self._take_finished()
        while self._readings.under_way and not self._delivering:
            waited = time.monotonic() - start
            if waited > timeout or (waited > elsewhere and not self._readings.under_way_here):
                return
            time.sleep(_POLL)
            self._take_finished()

    def _take_finished(self) -> None:
        # An on_alert= that saves a checkpoint comes back here: what is finished is delivered by the call outside it.
        if self._readings.under_way and not self._delivering:
            self._delivering = True
            try:
                with self._faults.isolated("reports", self._steps, pauses=False), self._budget.spending():
                    for report in self._readings.finished():
                        self._take(report)
            finally:
                self._delivering = False

    def _take(self, report: Report) -> None:
        changes = self._book.take(report, time=time.time())
        self._report = replace(report, firing=self._book.firing)
        self._out.write(self._report)
        self._raise([self._silence.report(report.step), *changes])

    def _raise(self, found: Iterable[Alert | None]) -> None:
        """Write all alerts of a report before any action: one that saves a state finds them in it."""
        alerts = [alert for alert in found if alert is not None]
        self._alerts += alerts
        for alert in alerts:
            self._out.alert(alert)
        for alert in alerts:
            self._out.act(alert)


_open: "weakref.WeakSet[Monitor]" = weakref.WeakSet()


def _close_all() -> None:
    """Close the monitors that the script left open, so that what was read is written."""
    for monitor in list(_open):
        monitor.close(_TIMEOUT_AT_EXIT)


# Before the interpreter waits for all threads of pools, which it does before the functions of atexit.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
