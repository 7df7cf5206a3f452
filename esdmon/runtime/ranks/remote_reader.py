"""Define `RemoteReader`, which reads matrices and serves copies on the other ranks, as planned by rank 0."""

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import final

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.records.serialization import Plain
from esdmon.runtime.ranks.assignments import Assigned, Assignments
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.parts import ShardedSource
from esdmon.runtime.readings import Readings
from esdmon.runtime.workers.executor import Executor
from esdmon.runtime.workers.source import Answer

_log = logging.getLogger("esdmon")


@final
class RemoteReader(Readings):
    """Read what rank 0 assigns to this rank, and send each reading to rank 0 as soon as it is ready.

    It takes the place that `ReadingPipeline` has on rank 0, which keeps and counts all readings, and makes the reports.
    """

    is_idle = False
    """Always False, since rank 0 may request a reading at each step."""

    def __init__(
        self, source: ShardedSource, executor: Executor, ranks: Coordinator, *, limits: Limits | None = None
    ) -> None:
        self._source = source
        self._executor = executor
        self._ranks = ranks
        self._limits = limits or Limits()
        self._assignments = Assignments(source, executor, ranks, limits=self._limits)
        self._is_lost = self._has_begun = False
        self._poll: int | None = None

    @property
    def under_way(self) -> bool:
        """Return whether any reading is not finished."""
        return not self._executor.is_idle()

    @property
    def under_way_here(self) -> bool:
        """Return `under_way`: this rank waits for no other."""
        return self.under_way

    @property
    def is_ready(self) -> bool:
        """Return whether there is nothing to do before the first due step."""
        return self._has_begun or self._assignments.announcer.has_joined

    def get_ready(self, _step: int) -> None:
        """Announce the table of this rank."""
        self._assignments.announcer.get_ready()

    def settle(self) -> None:
        """Synchronise the device, if readings are finished when they are begun."""
        if self._executor.on_the_spot:
            with self._executor.budget.spending():
                synchronise = self._source.synchronizer()
            synchronise()

    def advance(self, *, waiting: bool = False) -> None:
        """Check which copies have arrived from an accelerator, and let threads begin allowed readings."""
        self._source.advance()
        self._executor.advance(waiting=waiting)
        self._assignments.norms.send()

    def is_poll(self, step: int) -> bool:
        """Return whether this rank polls at this step, which is not due, for an extra plan."""
        self._poll = self._assignments.polls.take(step)
        return self._poll is not None

    def begin(
        self, step: int, _host_step: int | None = None, _names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        """Follow the plan of rank 0 for this due step, or an extra plan between due steps."""
        if is_scheduled:
            self._has_begun = True
            self._assignments.announcer.refresh()
            assigned = self._assignments.begin(step)
            if assigned is not None:
                self._assignments.screen(step, assigned.plan)
        else:
            assigned = None if self._poll is None else self._assignments.poll(self._poll, step)
        if assigned is not None and any(each.owner == self._ranks.rank for each in assigned.plan.assignments):
            self._executor.then(partial(self._send, step, assigned))

    def close(self) -> None:
        """End the threads, let the others fetch the copies of this rank, and release the store."""
        self._executor.close()
        self._source.advance(wait=True)
        self._assignments.close(self._limits.fragment_seconds)

    def prepare(self, _state: Plain) -> Callable[[], None]:
        """Return the function that starts again with the other ranks."""
        return self._assignments.restart

    def _send(self, step: int, assigned: Assigned) -> None:
        answer: Answer = {}
        for task in assigned.tasks:
            answer |= task.poll() or {}
        try:
            self._ranks.answer(step, answer, assigned.failures, self._executor.budget.pace)
        except Exception as error:  # noqa: BLE001 -- the job may be ending
            level, self._is_lost = (logging.DEBUG if self._is_lost else logging.WARNING), True
            _log.log(
                level,
                "esdmon: rank 0 cannot be reached at step %d: %s. What this rank has read is lost.",
                step,
                describe(error),
            )
