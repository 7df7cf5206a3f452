"""Define `Starter`, which begins the chosen readings of a due step, as far as there is credit and memory for them."""

from collections.abc import Sequence
from typing import final

from esdmon.runtime.pipeline.collector import Collector
from esdmon.runtime.pipeline.dropped import DroppedReadings
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.runtime.ranks.assignments import Assigned
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.workers.executor import Executor
from esdmon.runtime.workers.source import Source
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority
from esdmon.schedule.workers import steps_paused

_PATIENCE = 4  # times what readings of other ranks are expected to take, before they are given up. Our choice.


@final
class Starter:
    """Begin readings of this process, and take note of those that other ranks begin.

    Args:
        source: the matrices.
        executor: finishes readings.
        budget: the seconds that may be spent.
        priority: takes note of what is begun and lost.
        collector: collects readings that are finished when they are begun.
        dropped: counts readings for which there is no memory.
    """

    def __init__(
        self,
        source: Source,
        executor: Executor,
        budget: Budget,
        priority: ReadPriority,
        *,
        collector: Collector,
        dropped: DroppedReadings,
    ) -> None:
        self._source = source
        self._executor = executor
        self._budget = budget
        self._priority = priority
        self._collector = collector
        self._dropped = dropped
        self.left: tuple[str, ...] = ()
        """Matrices of the last scheduled step, for whose copies there was no memory then, and which are read later."""

    def start(self, due: DueStep, names: Sequence[str], *, within_credit: bool) -> bool:
        """Begin readings in this order; return False if credit or memory runs out before the last."""
        for count, name in enumerate(names):
            has_spent = (within_credit and due.read) or (count and self._executor.on_device)
            if has_spent and self._budget.reading_credit < 0:
                return False
            if not self._executor.has_room(name):
                if self._executor.reads_between:
                    self.left += tuple(names[count:])
                else:
                    self._dropped.skip(due.step, len(names) - count)
                return False
            self._begin(due, name)
        return True

    def _begin(self, due: DueStep, name: str) -> None:
        due.begun.add(name)
        self._priority.begun(name, due.step)
        moved = self._source.mark(name)
        try:
            due.here.append(self._executor.begin(name, due.step, moved=moved))
        except BaseException:  # Ctrl-C, say
            self._priority.lost(name)
            raise
        if self._executor.on_the_spot:
            self._collector.collect(due)

    def follow(self, job: DistributedJob, due: DueStep, assigned: Assigned, *, steps: int) -> None:
        """Record the readings of a plan that have begun, here and on other ranks.

        Args:
            job: the ranks of the job.
            due: the step of the plan.
            assigned: what this rank has begun.
            steps: number of steps of this process so far.
        """
        lost = due.follow(assigned)
        for name in due.begun:
            self._priority.begun(name, due.step)
        for name in lost:
            self._priority.lost(name)
        self._dropped.skip(due.step, len(lost))
        due.elsewhere = job.others(due.step, assigned)
        names = due.elsewhere.names if due.elsewhere else ()
        due.until = due.since + job.timeout + _PATIENCE * sum(map(self._priority.expected, names))
        due.until_step = steps + steps_paused(assigned.plan.ending)
        if self._executor.on_the_spot:
            self._collector.collect(due)
