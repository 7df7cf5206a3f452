"""Define `Planning`, which chooses the matrices to read within the credit of this process, or of each rank of a job."""

from collections.abc import Collection, Iterable, Mapping
from typing import final

from esdmon.runtime.pipeline.drift_log import DriftLog
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.ranks.messages import Assignment
from esdmon.runtime.ranks.sharing import Reads
from esdmon.runtime.workers.source import Task
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority
from esdmon.schedule.workers import blocks_to_end

_SWEEPS = 2  # readings of the whole model that credit is saved for: more than one, since costs vary


@final
class Planning:
    """Choose the matrices to read at a step, and in a job of several ranks at the next due step.

    Args:
        priority: orders the matrices, and has their costs.
        drift: has the matrices that this process holds.
        budget: the seconds that may be spent.
        due: the steps whose readings are under way; changed by the caller.
    """

    def __init__(self, priority: ReadPriority, drift: DriftLog, budget: Budget, due: Collection[DueStep]) -> None:
        self._priority = priority
        self._drift = drift
        self._budget = budget
        self._due = due

    def earn(self, job: DistributedJob | None) -> float:
        """Add credit for the time since the last call, for all ranks, and return it."""
        most = _SWEEPS * self._priority.sweep
        earned = self._budget.earn(at_most=most)
        if job is not None:
            job.capacities.earn(earned, most)
        return earned

    def here(self, due: DueStep, *, forced: bool = True) -> list[str]:
        """Return further matrices to read at a step in this process; see `ReadPriority.choose`. Has no side effect."""
        credit = self._budget.reading_credit - self._under_way()
        elsewhere = {name for name in self._priority.names if not self._drift.is_here(name)}
        without = elsewhere.union(due.begun)
        return self._priority.choose(due.step, credit, without=without, first=due.first, forced=forced)

    def between(self, names: Iterable[str]) -> list[str]:
        """Return the matrices among `names` that this process can read within its credit, at an unscheduled step."""
        here = [name for name in names if name in self._priority and self._drift.is_here(name)]
        return self._priority.affordable(here, self._budget.reading_credit)

    def ask(self, job: DistributedJob, names: Iterable[str]) -> None:
        """Request readings of these matrices on all ranks at the next poll, as far as there is credit."""
        missing, ranks = job.holdings.missing, self._ranks_of(job)
        readable = [name for name in names if name in self._priority and name not in missing]
        chosen = self._priority.affordable(readable, _credit_of(ranks))
        if chosen:
            job.ask(self._with_costs(chosen), ranks)

    def assign(
        self, job: DistributedJob, step: int, *, first: Collection[str] = (), ahead: float = 0.0
    ) -> tuple[Assignment, ...]:
        """Return what the ranks read at the next due step.

        Args:
            job: the ranks.
            step: the step at which the next due step is expected.
            first: matrices that are read before all others.
            ahead: seconds of credit that each rank will have earned by then.
        """
        ranks = self._ranks_of(job, ahead=ahead)
        names = self._priority.choose(step, _credit_of(ranks), without=job.holdings.missing, first=first, ahead=True)
        return job.assign(self._with_costs(names), ranks)

    def blocks_to_end(self, steps: int) -> int:
        """Return the number of blocks of steps in which the longest reading ends, after `steps` steps of the run."""
        longest = max(map(self._priority.expected, self._priority.names), default=0.0)
        return blocks_to_end(longest, self._budget.run_seconds / max(1, steps))

    def _under_way(self) -> float:
        """Return the expected seconds until the unfinished readings of this process are done."""
        return sum(self._left_of(task) for due in self._due for task in due.here)

    def _left_of(self, task: Task) -> float:
        """Return the expected remaining seconds of a started task."""
        on_device = task.in_hook > 0
        expected = sum(self._priority.expected(name, on_device=on_device) for name in task.names)
        return max(0.0, expected - task.in_hook)

    def _with_costs(self, names: Iterable[str]) -> dict[str, float]:
        """Return the expected seconds of each reading."""
        return {name: self._priority.expected(name) for name in names}

    def _ranks_of(self, job: DistributedJob, *, ahead: float = 0.0) -> dict[int, Reads]:
        """Return credit and pace of each rank, once it has earned `ahead` more seconds of credit."""
        under_way = {0: self._under_way()}
        for due in self._due:
            for name in due.elsewhere.names if due.elsewhere else ():
                rank = due.owners[name]
                under_way[rank] = under_way.get(rank, 0.0) + self._priority.expected(name)
        return job.capacities.reads(under_way, ahead=ahead)


def _credit_of(ranks: Mapping[int, Reads]) -> float:
    """Return the seconds of reading that all ranks may begin together."""
    return sum(max(0.0, reads.credit) for reads in ranks.values())
