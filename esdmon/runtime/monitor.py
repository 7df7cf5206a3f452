"""Define `Monitor`, the object that `esdmon.watch` returns: it counts steps, and is flushed, saved and closed."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, final

from esdmon.alerts import Actions, AlertManager
from esdmon.calls import explain_wrong_calls
from esdmon.isolation import Fault, Faults
from esdmon.records import Alert, Report
from esdmon.records.serialization import Plain, Stateful
from esdmon.records.text import count, counted
from esdmon.runtime.alerting import Alerting
from esdmon.runtime.context import Context
from esdmon.runtime.delivery import Delivery, close_sinks
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.readings import Readings
from esdmon.runtime.reporting import Reporting
from esdmon.runtime.saved_state import as_state, parse
from esdmon.runtime.stepping import Stepping
from esdmon.runtime.usage_hints import UsageHints
from esdmon.runtime.workers.at_exit import close_at_exit, forget_closed
from esdmon.schedule import Schedule
from esdmon.sinks import Sink
from esdmon.sinks.lines import new_run


@final
class Monitor:
    """Count optimizer steps, read the model at due steps, and pass the reports to alert rules and sinks.

    `esdmon.watch` returns a monitor. Errors inside a monitor are logged and not raised, unless `strict=True`. Reports
    are written in step order, by the thread that calls `step`.

    A copy or a pickle of a monitor (also as part of a model or an estimator) neither counts steps nor reads, since
    readings, sinks and hooks belong to one model in one process.
    """

    def __init__(
        self,
        readings: Readings,
        *,
        schedule: Schedule,
        sinks: Sequence[tuple[str, Sink]] = (),
        alerts: AlertManager | None = None,
        actions: Actions | None = None,
        escalation: Escalation | None = None,
        reader: Stateful | None = None,
        first_step: int = 0,
        context: Context | None = None,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._readings = readings
        self._context = context = context or Context()
        self._faults, self._hints = context.faults, context.hints
        manager = alerts or AlertManager()
        self._out = Delivery(sinks, actions or Actions(), context)
        self._alerting = Alerting(manager, self._out)
        self._reporting = Reporting(readings, self._alerting, self._out, escalation=escalation, context=context)
        self._stepping = Stepping(readings, schedule, self._reporting, escalation=escalation, context=context)
        parts: dict[str, Stateful | None] = {
            "readings": readings,
            "alerts": manager,
            "reader": reader,
            "escalation": escalation,
            "course": self._out.timeline,
        }
        self._parts = {name: part for name, part in parts.items() if part is not None}
        """The parts whose states are saved."""
        self._around = around
        self._is_hooked = self._closed = False
        self._run = new_run()
        self._at_close: list[Callable[[], None]] = []
        self._steps = first_step
        self._idle_until: float = 0
        """The step before which steps are only counted."""
        self._out.start(self._run, first_step)
        # Files and threads of the sinks are closed when the monitor is garbage-collected.
        weakref.finalize(self, close_sinks, self._out.sinks, Faults(), first_step).atexit = False
        close_at_exit(self, context.limits.exit_seconds)

    @property
    def report(self) -> Report | None:
        """Return the last report; None before the first."""
        return self._reporting.last

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Return all alerts so far, including resolved ones."""
        return tuple(self._alerting.alerts)

    @property
    def pending(self) -> tuple[Alert, ...]:
        """Return the findings that have not yet persisted for enough readings to fire."""
        return self._alerting.pending

    @property
    def should_stop(self) -> bool:
        """Return whether an alert of `stop_on=` has fired, or a plugin has requested a stop.

        Check this in your own loop; the callback of a Trainer ends the training by itself. In a job whose ranks train
        together it turns True on all ranks at the same due step, the first after rank 0 has raised the alert, if all
        ranks have called `watch` with the same options.
        """
        return self._context.requests.should_stop

    def take_save_request(self) -> bool:
        """Return whether an alert of `save_on=` has fired since the last call. For ranks see `should_stop`."""
        return self._context.requests.take_save_request()

    @property
    def errors(self) -> tuple[Fault, ...]:
        """Return the parts that have failed, each with its last error and the number of errors."""
        return tuple(self._faults)

    @property
    def steps(self) -> int:
        """Return the optimizer steps counted so far."""
        return self._steps

    @property
    def closed(self) -> bool:
        """Return whether `close` was called; True for a copy."""
        return self._closed or self._hints.is_copy

    @property
    def dropped(self) -> int:
        """Return the number of readings that were lost, or were skipped because the queue was full."""
        return self._readings.dropped

    @property
    def overhead(self) -> float:
        """Return the share of the run's time that monitoring has taken so far; NaN before the first step."""
        return self._context.budget.overhead

    def step(self, count: int = 1, *, host_step: int | None = None) -> bool:
        """Count a step, and read the model if it is due. Not needed where `watch` was given an optimizer.

        Args:
            count: number of steps since the last call, not the step itself. A reading is due if any of them is due.
            host_step: the x-coordinate of the step in the Trainer's charts, which is used for the readings too; a whole
                number of any library.

        Returns:
            True if a reading was due; the same on all ranks of a job.
        """
        if self._is_hooked:
            self._hints.ignored_step()
            return False
        if type(count) is not int or count != 1 or host_step is not None:
            count, host_step = self._hints.step_of(count, host_step)
        return self._count(count, host_step)

    def hooked_step(self) -> bool:
        """Count a step from the optimizer's hook. Later calls of `step` are ignored."""
        self._is_hooked = True
        return self._count(1, None)

    def _count(self, count: int, host_step: int | None) -> bool:
        if self._steps + count < self._idle_until:  # the usual case, with a fast exit
            self._steps += count
            return False
        if self._closed or not self._hints.check_active():
            return False
        self._steps += count
        with self._around():
            due = self._stepping.take(self._steps, count, host_step)
        # An action of an alert may have closed it.
        self._idle_until = 0 if self._closed else self._stepping.next_busy(self._steps)  # type: ignore[redundant-expr]
        return due

    @explain_wrong_calls
    def flush(self, timeout: float | None = None) -> None:
        """Wait for unfinished readings, at most `timeout` seconds (30), and flush the sinks."""
        if self._hints.check_active():
            limits = self._context.limits
            seconds = limits.close_seconds if timeout is None else timeout
            self._reporting.wait(self._steps, seconds, elsewhere=limits.close_seconds_elsewhere)
            self._out.flush(self._steps)

    @explain_wrong_calls
    def close(self, timeout: float | None = None, *, is_complete: bool = True) -> None:
        """Remove the hooks, wait for unfinished readings, close the sinks. Later calls do nothing.

        Args:
            timeout: largest number of seconds to wait, 30 by default. Readings not finished by then are lost; a log
                line says how many.
            is_complete: False if the training was interrupted. Then no warning is logged if nothing was read.
        """
        if self._closed or self._hints.is_inactive:
            return
        self._closed, self._idle_until = True, 0
        forget_closed(self)
        for undo in reversed(self._at_close):
            with self._faults.isolated("close", self._steps, pauses=False):
                undo()
        try:
            seconds = self._context.limits.close_seconds if timeout is None else timeout
            self._reporting.wait(self._steps, seconds, elsewhere=seconds)
            with self._faults.isolated("monitor", self._steps):
                self._readings.give_up()
            self._reporting.take(self._steps)
        finally:
            with self._faults.isolated("monitor", self._steps):
                self._readings.close()
            readings = self._readings
            if is_complete and readings.reports and not (readings.latest or readings.dropped or any(self._faults)):
                self._hints.nothing_read(self._steps)
            self._reporting.close(self._steps)

    def at_close(self, undo: Callable[[], None]) -> None:
        """Register a function that `close()` calls, such as one that removes a hook."""
        self._at_close.append(undo)

    def state_dict(self) -> Plain:
        """Return the state of the run: steps, readings, alerts, and samples of the weights.

        The state has plain data and tensors, about 40 kB for each matrix; `torch.load` reads it with weights_only. The
        call does not wait for unfinished readings: a resumed run reads these matrices next.
        """
        if self._hints.check_active():
            self._reporting.take(self._steps)
        return as_state(self._run, self._steps, self._alerting.alerts, self._parts)

    @explain_wrong_calls
    def load_state_dict(self, state: object) -> None:
        """Continue from a `state_dict()`. Sinks that support it remove what the run wrote after the saved step.

        Parts of the state that only a newer version knows are left out, with a warning.

        Raises:
            ValueError: if `state` is not a state that this version can read; the message names the version that wrote
                it. The monitor is then unchanged.
        """
        saved = parse(state, self._parts)
        self._idle_until = 0
        for part in saved.continue_from:
            part()
        self._alerting.alerts, self._steps, self._run = saved.alerts, saved.steps, saved.run or self._run
        self._out.start(self._run, saved.steps)
        self._out.rewind(saved.steps, saved.alerts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a constructor of an inactive copy, with the steps counted so far."""
        return copied, (self._steps,)

    def __repr__(self) -> str:
        """Return one line: the steps counted, the layers of the last report, and how many alert rules fire."""
        report = self.report
        found = "no report yet"
        if report is not None:
            firing = count(sum(layers > 0 for layers in report.firing.values()), "alert rule")
            found = f"report of step {report.step}: {counted(report)}, {firing} firing"
        return f"<Monitor{' (closed)' if self._closed else ''}, {count(self._steps, 'step')}, {found}>"

    def __enter__(self) -> Self:
        """Return the monitor, which is closed when the block ends."""
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        """Close the monitor, also if the loop has raised."""
        self.close(is_complete=kind is None)


def copied(steps: int) -> Monitor:
    """Return an inactive copy of a monitor: it has the counted steps, and neither reads nor counts."""
    context = Context(hints=UsageHints(is_copy=True))
    return Monitor(Readings(), schedule=lambda _step: False, first_step=steps, context=context)
