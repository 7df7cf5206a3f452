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
from esdmon.records.serialization import Plain, layer_from_plain, to_plain
from esdmon.runtime.coordination import Coordinator
from esdmon.runtime.due_step import DueStep
from esdmon.runtime.executor import Executor
from esdmon.runtime.source import Answer, Source, Task
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import TOLERANCE, ReadPriority, share_out

_SWEEPS = 2  # readings of the whole model that credit is saved for: more than one, since costs vary
_LOOKS = 32  # matrices whose drift is measured before the credit is checked again
_FEW_LOOKS = 4  # matrices whose drift is measured where there is no credit
_LOOKING = 0.5  # share of the credit that may go into measuring drift

_log = logging.getLogger("esdmon")


@final
class ReadingPipeline:
    """Begin readings at each due step, and yield the reports that are complete at every step.

    Args:
        source: the matrices.
        executor: finishes readings.
        budget: the seconds that may be spent.
        ranks: the ranks of the job, of which this is rank 0; None for a process that is alone.
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
        ranks: Coordinator | None = None,
        max_tags: int | None = None,
        queue: int = Limits().due_steps_under_way,
    ) -> None:
        self._source = source
        self._executor = executor
        self._budget = budget
        self._ranks = ranks
        self._max_tags = max_tags
        self._queue = queue
        self._priority = ReadPriority(source.nominal(), limited=budget.share is not None)
        self._due: deque[DueStep] = deque()
        self.latest: dict[str, LayerReport] = {}
        """The last reading of each matrix."""
        self.dropped = 0
        """Readings that were skipped because the queue was full, or that were lost."""
        self._has_warned = False

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
        self._budget.earn(at_most=_SWEEPS * self._priority.sweep)
        self._warn_if_over_budget()
        self._measure_drift(step)
        due = DueStep(step, host_step, self._drifts(), time.monotonic())
        if self._ranks is not None and self._ranks.has_joined:
            self._begin_on_all(due, self._ranks)
        else:
            if self._ranks is not None:
                self._ranks.join(self._source.fingerprint())
            self._begin_here(due)
        self._priority.pass_by()

    def plan(
        self, step: int, *, ranks: Sequence[int] = (0,), without: Collection[str] = (), forced: bool = True
    ) -> dict[int, list[str]]:
        """Return the matrices to read at a step, by rank. Nothing is begun or changed.

        Args:
            step: optimizer steps taken.
            ranks: those that share the reading, each with the credit of this one.
            without: matrices that are read at this step already.
            forced: read one matrix that has changed even without credit for it.
        """
        priority = self._priority
        under_way = (priority.expected(name) for due in self._due for task in due.here for name in task.names)
        credit = self._budget.credit * len(ranks) - sum(under_way)
        names = priority.choose(step, credit, without=without, forced=forced)
        if len(ranks) == 1:
            return {ranks[0]: names}
        return share_out({name: priority.expected(name) for name in names}, ranks)

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, the earliest first."""
        while self._due:
            self._collect(self._due[0])
            if not self._due[0].is_complete:
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
        if self._ranks is not None:
            self._ranks.end()

    def state_dict(self) -> Plain:
        """Return the last reading of each matrix."""
        return {name: to_plain(layer) for name, layer in self.latest.items()}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        return partial(self._continue_from, {name: layer_from_plain(layer) for name, layer in state.items()})

    def _continue_from(self, latest: Mapping[str, LayerReport]) -> None:
        self._due.clear()
        if self._ranks is not None:
            self._ranks.restart()
        self._priority = ReadPriority(self._source.nominal(), limited=self._budget.share is not None)
        self.latest = {name: latest[name] for name in self._priority.names if name in latest}
        for name, layer in self.latest.items():
            self._priority.begun(name, layer.step)

    def _refresh(self) -> None:
        if self._source.refresh():
            self._priority.replace(self._source.nominal())
            self.latest = {name: self.latest[name] for name in self._priority.names if name in self.latest}

    def _drifts(self) -> dict[str, float]:
        return {name: self._priority.drift(name) for name in self._priority.names}

    def _measure_drift(self, step: int) -> None:
        """Measure how far matrices have moved: all if the credit allows, else those not measured for longest."""
        names, credit = self._priority.to_look_at(), self._budget.credit
        count = _LOOKS if credit > 0 else _FEW_LOOKS
        while names:
            for name, drift in self._source.look(names[:count]).items():
                self._priority.looked(name, step, drift, trainable=self._source.is_trainable(name))
            names = names[count:]
            if self._budget.credit < (1 - _LOOKING) * credit or credit <= 0:
                break

    def _begin_extra(self, names: Collection[str], step: int, host_step: int | None) -> None:
        """Begin readings of some matrices at a step that is not scheduled, here and within the credit.

        Other ranks take no part, so that nobody waits.
        """
        self._refresh()
        self._budget.earn(at_most=_SWEEPS * self._priority.sweep)
        due = DueStep(step, host_step, self._drifts(), time.monotonic(), extra=True)
        credit = self._budget.credit
        chosen = []
        for name in names:
            if name in self._priority.names and self._priority.expected(name) <= credit:
                chosen.append(name)
                credit -= self._priority.expected(name)
        if chosen and len(self._due) < self._queue:
            self._due.append(due)
            self._start(due, chosen, within_credit=False)

    def _begin_here(self, due: DueStep) -> None:
        """Read within the credit, and plan again while some is left: the cost of a reading is known after it only."""
        if not self._enqueue(due):
            return
        forced = not self.under_way_here
        while True:
            names = self.plan(due.step, without=due.begun, forced=forced and not due.begun)[0]
            if not names or not self._start(due, names, within_credit=True) or due.here:
                return

    def _begin_on_all(self, due: DueStep, ranks: Coordinator) -> None:
        """Read here and on other ranks."""
        shares: dict[int, list[str]] = {0: []}
        try:
            if self._enqueue(due):
                shares = self.plan(due.step, ranks=[0, *ranks.helpers])
        finally:  # the other ranks wait for it, whatever fails here
            ranks.assign(due.step, shares)
        mine = shares.pop(0)
        moved = {name: self._mark(due, name) for names in shares.values() for name in names}
        if moved:
            poll = partial(_with_update_ratio, moved, partial(ranks.answered, due.step))
            due.elsewhere = Task(tuple(moved), poll, partial(ranks.give_up, due.step))
        self._start(due, mine, within_credit=False)

    def _enqueue(self, due: DueStep) -> bool:
        """Append a due step to the queue; return False, and count what is skipped, where the queue is full."""
        first = self._due[0] if self._due else None
        if first is not None and self._ranks is not None and due.since - first.since > self._ranks.timeout:
            self._give_up(first, elsewhere_only=True)
        if first is not None and len(self._due) >= self._queue and not first.is_complete:
            self._drop(due.step, len(self.plan(due.step)[0]))
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
        moved = self._mark(due, name)
        try:
            due.here.append(self._executor.begin(name, due.step, moved=moved))
        except BaseException:  # Ctrl-C, say
            self._priority.lost(name)
            raise
        if self._executor.on_the_spot:
            self._collect(due)

    def _mark(self, due: DueStep, name: str) -> float:
        due.begun.add(name)
        self._priority.begun(name, due.step)
        return self._source.mark(name)

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
        self.latest |= {name: due.read[name].settle(self.latest.get(name)) for name in names if name in due.read}
        return Report(
            due.step,
            tuple(self._as_of(due, name) for name in names if name in self.latest),
            self._source.coverage,
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


def _with_update_ratio(moved: Mapping[str, float], poll: Callable[[], Answer | None]) -> Answer | None:
    """Return the answer of other ranks with the update ratios of rank 0, which knows the last reading of any rank."""
    answer = poll()
    if answer is None:
        return None
    return {name: (replace(layer, update_ratio=moved[name]), seconds) for name, (layer, seconds) in answer.items()}
