"""Define `Stepping`, which does what there is to do at a step: read, report, exchange requests, and sample weights."""

import math
from typing import final

from esdmon.runtime.context import Context
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.readings import Readings
from esdmon.runtime.reporting import Reporting
from esdmon.schedule import Schedule, next_due


@final
class Stepping:
    """Do the work of steps, each part isolated from the training.

    Args:
        readings: reads, and makes the reports.
        schedule: decides which steps are due.
        reporting: checks and writes complete reports.
        escalation: asks for readings between due steps; None where there are none.
        context: what is shared with the other parts of the monitor.
    """

    def __init__(
        self,
        readings: Readings,
        schedule: Schedule,
        reporting: Reporting,
        *,
        escalation: Escalation | None,
        context: Context,
    ) -> None:
        self._readings = readings
        self._schedule = schedule
        self._reporting = reporting
        self._escalation = escalation
        self._requests, self._faults, self._budget = context.requests, context.faults, context.budget
        self._has_settled = False

    def take(self, step: int, count: int, host_step: int | None) -> bool:
        """Do what there is to do at a step, and return whether it is due.

        Args:
            step: optimizer steps taken.
            count: the steps since the last call. The step is due if any of them is.
            host_step: optimizer steps as the host counts them.
        """
        self._budget.start()
        self._reporting.advance(step)
        is_due = self._is_due(step, count)
        names = self._asked(step, is_due=is_due)
        is_poll = not is_due and self._readings.is_poll(step)
        if is_due:
            self._faults.advance()
        if is_due or names or is_poll:
            self._begin(step, host_step, names, is_due=is_due)
        elif not self._readings.is_ready:
            self._get_ready(step)
        if is_due or step >= self._reporting.next_step:
            self._reporting.at_step(step, is_due=is_due)
        if self._requests.is_shared:
            self._exchange_requests(step, is_due=is_due)
        escalation = self._escalation
        if escalation is not None and step >= escalation.next_step and not self._faults.disabled("escalation"):
            self._faults.call("escalation", step, escalation.sample, step, default=None)
        return is_due

    def next_busy(self, step: int) -> float:
        """Return the first step after this one at which there may be anything to do; 0 where it may be the next."""
        if not self._readings.is_idle or self._requests.is_shared:
            return 0
        to_sample = math.inf if self._escalation is None else self._escalation.next_step
        return min(next_due(self._schedule, step), to_sample, self._reporting.next_step)

    def _is_due(self, step: int, count: int) -> bool:
        """Return whether any of the last `count` steps is due."""
        if count == 1:  # the usual case, at each step
            return self._is_scheduled(step, step)
        following = next_due(self._schedule, step - count)
        while following <= step:
            if self._is_scheduled(int(following), step):
                return True
            following = next_due(self._schedule, int(following))
        return False

    def _is_scheduled(self, step: int, now: int) -> bool:
        """Return whether the schedule is due at a step; False if it fails."""
        return self._faults.call("schedule", now, self._ask_schedule, step, default=False, pauses=False)

    def _ask_schedule(self, step: int) -> bool:
        return bool(self._schedule(step))

    def _asked(self, step: int, *, is_due: bool) -> tuple[str, ...]:
        """Return the layers to read at a step that is not due; at a due step, the layers to read first."""
        escalation = self._escalation
        is_time = escalation is not None and (is_due or step >= escalation.next_step)
        if escalation is not None and is_time and not self._faults.disabled("escalation"):
            none: tuple[str, ...] = ()
            names = self._faults.call("escalation", step, escalation.due, step, is_scheduled=is_due, default=none)
            if names or is_due:
                return names
        return () if is_due else self._readings.leftover()

    def _begin(self, step: int, host_step: int | None, names: tuple[str, ...], *, is_due: bool) -> None:
        """Begin the readings of a step; see `Readings.begin`."""
        if not self._faults.disabled("monitor"):
            with self._faults.isolated("monitor", step):
                if is_due or names:
                    self._readings.settle()
                with self._budget.spending():
                    self._readings.begin(step, host_step, names, is_scheduled=is_due)

    def _get_ready(self, step: int) -> None:
        """Prepare the first due step: the ranks of a job exchange the list of weights that each holds."""
        if not self._faults.disabled("ranks"):
            with self._faults.isolated("ranks", step):
                if not self._has_settled:  # once: where the other ranks do not watch no step must wait
                    self._has_settled = True
                    self._readings.settle()
                with self._budget.spending():
                    self._readings.get_ready(step)

    def _exchange_requests(self, step: int, *, is_due: bool) -> None:
        """Exchange the requests of alerts, to stop or to save, with the other ranks."""
        with self._faults.isolated("requests", step, pauses=False):
            if is_due:
                self._readings.settle()  # a device may be steps behind, and with it the other ranks
            with self._budget.spending():
                self._requests.exchange(step, is_due=is_due)
