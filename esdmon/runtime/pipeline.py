"""`ReadingPipeline`: plan the readings of a due step, start them, gather what is finished, report in step order."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import final

from esdmon.limits import Limits
from esdmon.records import LayerReport, Report
from esdmon.records.adapters import beside_base
from esdmon.records.serialization import Plain, layer_from_plain, to_plain
from esdmon.runtime.assignments import Assigned
from esdmon.runtime.drift_log import DriftLog
from esdmon.runtime.due_step import DueStep
from esdmon.runtime.executor import Executor
from esdmon.runtime.source import Answer, Source, Task
from esdmon.runtime.team import Team
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import TOLERANCE, ReadPriority

_SWEEPS = 2  # readings of the whole model that credit is saved for: more than one, since costs vary
_PATIENCE = 4  # times what readings of other ranks are expected to take, before they are given up. Our choice.

_log = logging.getLogger("esdmon")


@final
class ReadingPipeline:
    """Begin readings at each due step, and yield the reports that are complete at every step.

    Args:
        source: the matrices.
        executor: finishes readings.
        budget: the seconds that may be spent.
        team: the ranks of the job, of which this is rank 0; None for a process that is alone.
        max_tags: passed on to the sinks in each report.
        queue: due steps whose readings may be under way.
    """

    reports = True

    def __init__(
        self,
        source: Source,
        executor: Executor,
        budget: Budget,
        *,
        team: Team | None = None,
        max_tags: int | None = None,
        queue: int = Limits().due_steps_under_way,
    ) -> None:
        self._source = source
        self._executor = executor
        self._budget = budget
        self._team = team
        self._max_tags = max_tags
        self._queue = queue
        self._priority = ReadPriority(source.nominal(), limited=budget.share is not None)
        self._drift = DriftLog(source, self._priority, budget, team)
        self._due: deque[DueStep] = deque()
        self.latest: dict[str, LayerReport] = {}
        """The last reading of each matrix."""
        self.dropped = 0
        """Readings that were skipped because the queue was full, or that were lost."""
        self._has_warned = False
        self._last_due = 0

    @property
    def under_way(self) -> bool:
        """Return whether any due step is not reported."""
        return bool(self._due)

    @property
    def under_way_here(self) -> bool:
        """Return whether any reading of this process is not finished."""
        return any(due.here for due in self._due)

    def settle(self) -> None:
        """Synchronise the device before what follows is measured."""
        self._source.settle()

    def begin(self, step: int, host_step: int | None = None, extra: Collection[str] = ()) -> None:
        """Begin the readings of a scheduled step, which the host counts as `host_step`; or extra ones between these."""
        if extra:
            self._begin_extra(extra, step, host_step)
            return
        self._refresh()
        earned = self._budget.earn(at_most=_SWEEPS * self._priority.sweep)
        self._warn_if_over_budget()
        self._drift.measure(step)
        due = DueStep(step, host_step, self._drift.known(), time.monotonic())
        if self._team is None:
            self._begin_here(due)
        else:
            self._begin_with(self._team, due, earned)
        self._priority.pass_by()

    def plan(self, step: int, *, without: Collection[str] = (), forced: bool = True) -> list[str]:
        """Return the matrices to read at a step in this process; see `ReadPriority.choose`. Nothing is changed."""
        credit = self._budget.credit - self._under_way()
        elsewhere = {name for name in self._priority.names if not self._drift.is_here(name)}
        return self._priority.choose(step, credit, without=elsewhere.union(without), forced=forced)

    def _under_way(self) -> float:
        """Return the expected seconds of what this process has to finish."""
        return sum(self._priority.expected(name) for due in self._due for task in due.here for name in task.names)

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, the earliest first."""
        while self._due:
            if time.monotonic() > self._due[0].until:
                self._give_up(self._due[0], elsewhere_only=True)
            if not self._is_complete(self._due[0]):
                return
            yield self._report(self._due.popleft())

    def give_up(self) -> None:
        """Cancel what is under way; the log says how much is lost."""
        for due in self._due:
            self._collect(due)
            self._give_up(due)

    def close(self) -> None:
        """End the thread, and let other ranks wait no more."""
        self._executor.close()
        if self._team is not None:
            self._team.close()

    def state_dict(self) -> Plain:
        """Return the last reading of each matrix."""
        return {name: to_plain(layer) for name, layer in self.latest.items()}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        return partial(self._continue_from, {name: layer_from_plain(layer) for name, layer in state.items()})

    def _continue_from(self, latest: Mapping[str, LayerReport]) -> None:
        self._due.clear()
        if self._team is not None:
            self._team.restart()
        self._priority = ReadPriority(self._nominal(), limited=self._budget.share is not None)
        self._drift = DriftLog(self._source, self._priority, self._budget, self._team)
        self.latest = {name: latest[name] for name in self._priority.names if name in latest}
        for name, layer in self.latest.items():
            self._priority.begun(name, layer.step)

    def _refresh(self) -> None:
        if (self._team or self._source).refresh():
            self._replace()

    def _replace(self) -> None:
        """Take up the matrices that there are now."""
        self._priority.replace(self._nominal())
        self.latest = {name: self.latest[name] for name in self._priority.names if name in self.latest}

    def _nominal(self) -> dict[str, float]:
        own = self._source.nominal()
        return own if self._team is None else self._team.nominal(own)

    def _begin_extra(self, names: Collection[str], step: int, host_step: int | None) -> None:
        """Begin readings of some matrices at a step that is not scheduled, here and within the credit.

        Other ranks take no part, so that nobody waits.
        """
        self._refresh()
        self._budget.earn(at_most=_SWEEPS * self._priority.sweep)
        due = DueStep(step, host_step, self._drift.known(), time.monotonic(), extra=True)
        here = [name for name in names if name in self._priority.names and self._drift.is_here(name)]
        chosen = self._priority.affordable(here, self._budget.credit)
        if chosen and len(self._due) < self._queue:
            self._due.append(due)
            self._start(due, chosen, within_credit=False)

    def _begin_here(self, due: DueStep) -> None:
        """Read within the credit, and plan again while some is left: the cost of a reading is known after it only."""
        if not self._enqueue(due):
            return
        forced = not self.under_way_here
        while True:
            names = self.plan(due.step, without=due.begun, forced=forced and not due.begun)
            if not names or not self._start(due, names, within_credit=True) or due.here:
                return

    def _begin_with(self, team: Team, due: DueStep, earned: float) -> None:
        """Read here and on other ranks what was planned at the due step before, and plan the next one."""
        assigned = team.begin(due.step)
        if assigned is None:
            self._begin_here(due)
        else:
            self._follow(team, due, assigned)
        if team.look():
            self.latest = team.renamed(self.latest)
            due.read = team.renamed(due.read)
            self._replace()
        due.read |= team.unreadable(due.step)
        if team.is_alone:
            return
        previous, self._last_due = self._last_due, due.step
        if sum(not self._is_complete(each) for each in self._due) < self._queue:
            credit = (self._budget.credit + earned) * team.size - self._under_way()
            then = due.step + max(1, due.step - previous)
            team.plan(due.step, self._priority.choose(then, credit, without=team.missing, ahead=True))

    def _follow(self, team: Team, due: DueStep, assigned: Assigned) -> None:
        """Take note of what was begun, here and on other ranks."""
        self._due.append(due)
        jobs = assigned.word.jobs
        due.begun.update(name for job in jobs for name in job.names)
        for name in due.begun:
            self._priority.begun(name, due.step)
        due.here += assigned.tasks
        mine = {name for task in assigned.tasks for name in task.names}
        lost = [name for job in jobs if not job.owner for name in job.names if name not in mine]
        for name in lost:
            self._priority.lost(name)
        self._drop(due.step, len(lost))
        due.elsewhere = team.others(due.step, assigned)
        names = due.elsewhere.names if due.elsewhere else ()
        due.until = due.since + team.timeout + _PATIENCE * sum(map(self._priority.expected, names))
        if self._executor.on_the_spot:
            self._collect(due)

    def _is_complete(self, due: DueStep) -> bool:
        self._collect(due)
        return due.is_complete

    def _enqueue(self, due: DueStep) -> bool:
        """Append a due step to the queue; return False, and count what is skipped, where it is full here."""
        if sum(not self._is_complete(each) and bool(each.here) for each in self._due) >= self._queue:
            self._drop(due.step, len(self.plan(due.step)))
            return False
        self._due.append(due)
        return True

    def _start(self, due: DueStep, names: Sequence[str], *, within_credit: bool) -> bool:
        """Begin readings in this order; return False where credit or memory has run out before the last."""
        for count, name in enumerate(names):
            if within_credit and due.read and self._budget.credit < 0:
                return False
            if not self._executor.has_room(name):
                self._drop(due.step, len(names) - count)
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
            self._collect(due)

    def _collect(self, due: DueStep) -> None:
        while due.here:
            task = due.here.popleft()
            answer = task.poll()
            if answer is None:
                due.here.appendleft(task)
                break
            self._take(due, task, answer)
        if due.elsewhere is not None:
            answer = due.elsewhere.poll()
            if answer is not None:
                task, due.elsewhere = due.elsewhere, None
                self._take(due, task, answer)

    def _take(self, due: DueStep, task: Task, answer: Answer) -> None:
        for name, (layer, seconds) in answer.items():
            due.read[name] = replace(layer, host_step=due.host_step, extra=due.extra)
            due.seconds += seconds
            self._priority.took(name, seconds, readable=layer.status == "ok")
        lost = [name for name in task.names if name not in answer]
        self.dropped += len(lost)
        for name in lost:
            self._priority.lost(name)

    def _give_up(self, due: DueStep, *, elsewhere_only: bool = False) -> None:
        tasks = [] if elsewhere_only else list(due.here)
        if due.elsewhere is not None:
            tasks.append(due.elsewhere)
        before = self.dropped
        for task in tasks:
            self._take(due, task, task.give_up())
        due.elsewhere = None
        if not elsewhere_only:
            due.here.clear()
        if self.dropped > before:
            _log.warning(
                "esdmon: %d readings of step %d were not finished in time and are lost, see monitor.dropped.",
                self.dropped - before,
                due.step,
            )

    def _drop(self, step: int, count: int) -> None:
        if count and not self.dropped:
            _log.warning(
                "esdmon: skipped %d readings at step %d because the queue is full: increase every=, or lower budget=. "
                "Logged once; see monitor.dropped.",
                count,
                step,
            )
        self.dropped += count

    def _warn_if_over_budget(self) -> None:
        if not self._has_warned and self._budget.is_exceeded:
            self._has_warned = True
            _log.warning(
                "esdmon: reading one matrix at each due step takes %.1f %% of the run, more than budget=%g: increase "
                "every=.",
                100 * self._budget.overhead,
                self._budget.share,
            )

    def _report(self, due: DueStep) -> Report:
        names = self._priority.names
        if self._team is not None:
            self._team.settle(due.step)
            self._drift.learn(due.read, self.latest)
        read = {name: due.read[name].settle(self.latest.get(name)) for name in names if name in due.read}
        self.latest |= read
        self.latest |= {name: beside_base(layer, self.latest) for name, layer in read.items()}
        return Report(
            due.step,
            tuple(self._as_of(due, name) for name in names if name in self.latest),
            self._source.coverage if self._team is None else self._team.coverage(self._source.coverage),
            due.seconds,
            waiting=tuple(name for name in names if name not in self.latest),
            overhead=self._budget.overhead,
            host_step=due.host_step,
            max_tags=self._max_tags,
            extra=due.extra,
        )

    def _as_of(self, due: DueStep, name: str) -> LayerReport:
        """Return the last reading of a matrix, with what is known of it at a due step."""
        layer = self.latest[name]
        if layer.step == due.step:
            return layer
        drift = due.drift.get(name, math.nan)
        trainable = layer.trainable and self._priority.is_trainable(name)
        return replace(layer, emitted_step=due.step, trainable=trainable, drift=drift, unchanged=drift <= TOLERANCE)
