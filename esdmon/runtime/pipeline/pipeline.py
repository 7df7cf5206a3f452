"""Define `ReadingPipeline`, which plans and starts the readings of a due step, and reports them in step order."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import final

from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain
from esdmon.runtime.pipeline.collector import Collector
from esdmon.runtime.pipeline.drift_log import DriftLog
from esdmon.runtime.pipeline.dropped import DroppedReadings
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.runtime.pipeline.latest import LatestReadings
from esdmon.runtime.pipeline.loaded import check_loaded
from esdmon.runtime.pipeline.planning import Planning
from esdmon.runtime.pipeline.screening import Screening
from esdmon.runtime.pipeline.starter import Starter
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.readings import Readings
from esdmon.runtime.workers.executor import Executor
from esdmon.runtime.workers.source import Source
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority


@final
class ReadingPipeline(Readings):
    """Begin readings at each due step, and yield the reports that are complete at every step.

    Args:
        source: the matrices.
        executor: finishes readings.
        budget: the seconds that may be spent.
        job: the ranks of the job, on rank 0; None for a single process.
        max_tags: passed on to the sinks in each report.
        queue: largest number of due steps with unfinished readings.
    """

    reports = True
    is_ready = False
    """True if there is nothing to do before the first due step."""

    def __init__(
        self,
        source: Source,
        executor: Executor,
        budget: Budget,
        *,
        job: DistributedJob | None,
        max_tags: int | None,
        queue: int,
    ) -> None:
        self._source = source
        self._executor = executor
        self._budget = budget
        self._job = job
        self._max_tags = max_tags
        self._queue = queue
        self._due: deque[DueStep] = deque()
        self._latest = LatestReadings()
        self._dropped = DroppedReadings()
        self._forget()
        self._steps = self._last_due = 0
        self.is_ready = job is None

    @property
    def latest(self) -> Mapping[str, LayerReport]:
        """Return the last reading of each matrix."""
        return self._latest.read

    @property
    def dropped(self) -> int:
        """Return how many readings were skipped because the queue was full, or were lost."""
        return self._dropped.count

    @property
    def under_way(self) -> bool:
        """Return whether any due step is not reported."""
        return bool(self._due)

    @property
    def is_idle(self) -> bool:
        """Return whether nothing has to be done before the next step with a reading or a sample.

        False in a job of several ranks, and if the time of each step is measured to set the number of threads.
        """
        is_measuring = self._job is not None or self._executor.pauses
        return not (is_measuring or self._due or self._starter.left) and self._source.is_idle

    @property
    def under_way_here(self) -> bool:
        """Return whether any reading of this process is not finished."""
        return any(due.here for due in self._due)

    def settle(self) -> None:
        """Choose the matrices that a GPU computes at this step, and synchronise the GPU if readings wait for it.

        So its pending kernels do not count as readings. In a job of several ranks no GPU computes: a rank
        that waits for its GPU would slow the others while their threads are measured.
        """
        if self._job is None and self._executor.may_use_device:
            with self._budget.spending():
                self._choose_device(self._source.solvable())
        if self._executor.on_the_spot or self._executor.on_device:
            with self._budget.spending():
                synchronise = self._source.synchronizer()
            synchronise()

    def advance(self, *, waiting: bool = False) -> None:
        """Check which copies have arrived from an accelerator, and let threads begin allowed readings."""
        self._steps += not waiting
        for due in self._due if waiting else ():
            due.until_step = 0  # threads do not pause while the training waits
        self._source.advance()
        self._executor.advance(waiting=waiting)
        if waiting and self._job is not None:
            self._job.membership.look_who_left()

    def leftover(self) -> tuple[str, ...]:
        """Return the unread matrices of the last scheduled step, once all begun readings are finished."""
        return self._starter.left if self._starter.left and self._executor.is_idle() else ()

    def get_ready(self, step: int) -> None:
        """Exchange tables with all ranks before the first due step, and plan its readings."""
        if self._job is None or self.is_ready:
            return
        if self._job.get_ready():
            self._replace()
        if self._job.membership.is_complete:
            self.is_ready = True
            assignments = self._planning.assign(self._job, step + 1)
            self._job.announce(None, assignments, ending=self._planning.blocks_to_end(self._steps))

    def is_elsewhere(self, name: str) -> bool:
        """Return whether other ranks have to take part in a reading of a matrix."""
        return not self._drift.is_here(name)

    @property
    def next_poll(self) -> int | None:
        """Return the step, between scheduled ones, of the next reading in which other ranks take part."""
        return None if self._job is None else self._job.next_poll

    def ask(self, names: Collection[str]) -> None:
        """Request readings on all ranks at the next poll, as far as there is credit; one request at a time."""
        is_free = len(self._due) < self._queue and not any(due.asked for due in self._due)
        if self._job is not None and is_free:
            with self._budget.spending():
                self._planning.ask(self._job, names)

    def is_poll(self, step: int) -> bool:
        """Return whether all ranks do requested readings at this step, which is not scheduled."""
        return self._job is not None and self._job.is_poll(step)

    def begin(
        self, step: int, host_step: int | None = None, names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        """Begin the readings of a scheduled step, or of `names` at any other step; see `Readings.begin`."""
        try:
            if is_scheduled:
                self._begin_scheduled(names, step, host_step)
            else:
                self._begin_extra(names, step, host_step)
        finally:
            self._choose_device(())

    def _begin_scheduled(self, first: Collection[str], step: int, host_step: int | None) -> None:
        self._starter.left = ()
        self._refresh()
        earned = self._planning.earn(self._job)
        self._dropped.check(self._budget)
        self._drift.measure(step)
        due = DueStep(step, host_step, self._drift.known(), time.monotonic(), first=first)
        if self._job is None:
            self._begin_here(due)
        else:
            self._begin_with(self._job, due, earned)
        self._screening.screen(step, without=due.begun, latest=self.latest)
        self._priority.pass_by()

    def _begin_here(self, due: DueStep) -> None:
        """Read within the credit, and plan again while credit is left: costs are known only after the readings."""
        if sum(bool(each.here) for each in self._collector.unfinished()) >= self._queue:
            self._dropped.skip(due.step, len(self._planning.here(due)))
            return
        self._due.append(due)
        forced = not self.under_way_here
        while True:
            names = self._planning.here(due, forced=forced and not due.begun)
            if not names or not self._starter.start(due, names, within_credit=True) or due.here:
                return

    def _begin_with(self, job: DistributedJob, due: DueStep, earned: float) -> None:
        """Begin the readings planned at the previous due step, here and on other ranks, and plan the next due step."""
        assigned = job.begin(due.step)
        if assigned is None:
            self._begin_here(due)
        else:
            self._due.append(due)
            self._starter.follow(job, due, assigned, steps=self._steps)
            self._screening.screen_together(job, due.step)
        self.is_ready = True
        if job.update_holdings():
            self._latest.read = job.names.renamed(self.latest)
            due.read = job.names.renamed(due.read)
            self._replace()
        due.read = job.unreadable(due.step) | due.read
        if job.membership.is_alone:
            return
        previous, self._last_due = self._last_due, due.step
        if len(self._collector.unfinished()) < self._queue:
            gap = max(1, due.step - previous)
            assignments = self._planning.assign(job, due.step + gap, first=due.first, ahead=earned)
            to_screen = self._screening.ahead(job, {name for each in assignments for name in each.names})
            ending = self._planning.blocks_to_end(self._steps)
            job.announce(due.step, assignments, gap=gap, ending=ending, to_screen=to_screen)

    def _begin_extra(self, names: Collection[str], step: int, host_step: int | None) -> None:
        """Begin readings at an unscheduled step: requested ones, and some matrices of this rank within the credit.

        Other ranks take part in requested readings only, so that no rank waits.
        """
        self._refresh()
        self._planning.earn(self._job)
        due = DueStep(step, host_step, self._drift.known(), time.monotonic(), extra=True)
        chosen = self._planning.between(names)
        named = frozenset(names)
        self._starter.left = tuple(name for name in self._starter.left if name not in named)
        assigned = None if self._job is None else self._job.begin_asked(step)
        if assigned is None and not (chosen and len(self._due) < self._queue):
            return
        self._due.append(due)
        if self._job is not None and assigned is not None:
            self._starter.follow(self._job, due, assigned, steps=self._steps)
        self._starter.start(due, chosen, within_credit=False)

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, the earliest first."""
        while (due := self._collector.take_complete(self._steps)) is not None:
            yield self._report(due)

    def _report(self, due: DueStep) -> Report:
        names = self._priority.names
        if self._job is not None:
            self._job.settle(due.step)
            if due.asked:
                self._job.faults.settle_asked(due.step, due.missed)
        self._drift.learn(due.read, self.latest)
        self._latest.take(due.read, names)
        self._take_up()
        return Report(
            due.step,
            tuple(self._latest.as_of(due, self._priority.is_trainable)),
            self._source.coverage if self._job is None else self._job.coverage(self._source.coverage),
            due.seconds,
            waiting=tuple(name for name in names if name not in self.latest),
            overhead=self._budget.overhead,
            host_step=due.host_step,
            max_tags=self._max_tags,
            extra=due.extra,
            screened=self._screening.as_of(due.step, self.latest),
        )

    def give_up(self) -> None:
        """Cancel unfinished readings, and log how many are lost."""
        self._collector.give_up()

    def close(self) -> None:
        """End the threads, and let other ranks fetch the copies that they wait for."""
        self._executor.close()
        if self._job is not None:
            self._source.advance(wait=True)  # copies that they fetch from this rank
            self._job.close()

    def state_dict(self) -> Plain:
        """Return the last reading of each matrix."""
        return self._latest.state_dict()

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        return partial(self._continue_from, self._latest.prepare(state))

    def _choose_device(self, solvable: Collection[str]) -> None:
        """Choose the matrices whose eigenvalues a GPU computes now, among the solvable ones."""
        chosen = frozenset(filter(self._priority.pays_on_device, solvable))
        self._executor.on_device = self._priority.on_device = chosen

    def _forget(self) -> None:
        """Begin without any reading, as at the start of a run."""
        source, budget, job = self._source, self._budget, self._job
        self._priority = ReadPriority(self._nominal(), source.seconds_on_device(), limited=budget.share is not None)
        self._collector = Collector(self._priority, self._dropped, self._due)
        self._starter = Starter(
            source, self._executor, budget, self._priority, collector=self._collector, dropped=self._dropped
        )
        self._drift = DriftLog(source, self._priority, budget, job)
        self._screening = Screening(source, self._priority, self._drift, budget, job)
        self._planning = Planning(self._priority, self._drift, budget, self._due)

    def _continue_from(self, restore: Callable[[], None]) -> None:
        self._due.clear()
        if self._job is not None:
            self._job.restart()
            self.is_ready = False
        self._forget()
        restore()
        self._take_up()

    def _refresh(self) -> None:
        if (self._job or self._source).refresh():
            self._replace()

    def _replace(self) -> None:
        """Replace the list of matrices by the current one."""
        self._priority.replace(self._nominal(), self._source.seconds_on_device())
        self._take_up()

    def _take_up(self) -> None:
        """Keep the readings of the current matrices, including saved ones."""
        is_final = self._job is None or self._job.membership.is_settled
        for name, layer in self._latest.keep(self._priority.names, is_final=is_final).items():
            self._priority.begun(name, layer.step)
        if is_final and (loaded := self._latest.take_loaded()):
            check_loaded(loaded, self._priority.names, self._source.n_elements)

    def _nominal(self) -> dict[str, float]:
        own = self._source.nominal()
        return own if self._job is None else self._job.nominal(own)
