"""Readings: what is read at a due step is decided, begun, gathered when it is finished, and reported in step order."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain, layer_from_plain, to_plain
from esdmon.runtime.coordination import Coordinator
from esdmon.runtime.executor import Answer, Executor, Source, Task
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import TOLERANCE, ReadPriority, share_out

QUEUE = 4
"""Due steps whose readings may be under way; until the first is finished no more are begun. Our choice."""
_SWEEPS = 2  # readings of the whole model that credit is saved for: more than one, since costs vary
_LOOKS = 32  # matrices looked at before it is asked again whether there is time for more
_FEW_LOOKS = 4  # those that are looked at where there is no credit
_LOOKING = 0.5  # share of the credit that may go into looking

_log = logging.getLogger("esdmon")


@dataclass(slots=True)
class _Due:
    """A due step: its readings, finished and under way."""

    step: int
    host_step: int | None
    drift: Mapping[str, float]
    """How far those that were looked at had moved since they were read."""
    since: float
    """When it was, by the clock."""
    begun: set[str] = field(default_factory=set)
    here: deque[Task] = field(default_factory=deque)
    """Under way in this process, in the order in which they will be finished."""
    elsewhere: Task | None = None
    """Under way on other ranks."""
    read: dict[str, LayerReport] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        return not self.here and self.elsewhere is None


@final
class ReadingPipeline:
    """`begin` at each due step, and `finished` at every step for the reports that are complete.

    Args:
        source: what is read.
        worker: what finishes it.
        budget: what may be spent.
        replicas: the ranks of the job that hold the same weights, of which this is the first; None where it is alone.
        max_tags: said to the sinks in each report.
    """

    reports = True

    def __init__(
        self,
        source: Source,
        worker: Executor,
        budget: Budget,
        *,
        replicas: Coordinator | None = None,
        max_tags: int | None = None,
    ) -> None:
        self._source = source
        self._worker = worker
        self._budget = budget
        self._replicas = replicas
        self._max_tags = max_tags
        self._turns = ReadPriority(source.nominal(), limited=budget.share is not None)
        self._due: deque[_Due] = deque()
        self.latest: dict[str, LayerReport] = {}
        """The last reading of each matrix."""
        self.dropped = 0
        """Readings that were not begun, since too many were under way, or came to nothing."""
        self._told = False

    @property
    def under_way(self) -> bool:
        """Whether `finished` has anything to look for."""
        return bool(self._due)

    @property
    def under_way_here(self) -> bool:
        """Whether any of it is this process's."""
        return any(due.here for due in self._due)

    def settle(self) -> None:
        """Wait for the device before what follows is measured."""
        self._source.settle()

    def begin(self, step: int, host_step: int | None = None) -> None:
        """Begin the readings of a due step, which the host may count otherwise."""
        if self._source.refresh():
            self._turns.replace(self._source.nominal())
            self.latest = {name: self.latest[name] for name in self._turns.names if name in self.latest}
        self._budget.earn(at_most=_SWEEPS * self._turns.sweep)
        self._tell_if_over_budget()
        self._look(step)
        drift = {name: self._turns.drift(name) for name in self._turns.names}
        due = _Due(step, host_step, drift, time.monotonic())
        if self._replicas is None:
            self._read(due)
        else:
            self._share(due, self._replicas)
        self._turns.pass_by()

    def finished(self) -> Iterator[Report]:
        """The reports that are complete, the earliest first."""
        while self._due:
            self._collect(self._due[0])
            if not self._due[0].is_complete:
                return
            yield self._report(self._due.popleft())

    def give_up(self) -> None:
        """Wait no more for what is under way; it is lost, and told."""
        for due in self._due:
            self._collect(due)
            self._give_up(due)

    def close(self) -> None:
        """Free the worker, and let other ranks wait no more."""
        self._worker.close()
        if self._replicas is not None:
            self._replicas.end()

    def state_dict(self) -> Plain:
        """The last reading of each matrix."""
        return {name: to_plain(layer) for name, layer in self.latest.items()}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse them, and return what goes on from them."""
        return partial(self._take_over, {name: layer_from_plain(layer) for name, layer in state.items()})

    def _take_over(self, latest: Mapping[str, LayerReport]) -> None:
        self._due.clear()
        if self._replicas is not None:
            self._replicas.restart()
        self._turns = ReadPriority(self._source.nominal(), limited=self._budget.share is not None)
        self.latest = {name: latest[name] for name in self._turns.names if name in latest}
        for name, layer in self.latest.items():
            self._turns.begun(name, layer.step)

    def _look(self, step: int) -> None:
        """How far matrices have moved: of all where there is time, and else of those not looked at for longest."""
        names, credit = self._turns.to_look_at(), self._budget.credit
        count = _LOOKS if credit > 0 else _FEW_LOOKS
        while names:
            for name, drift in self._source.look(names[:count]).items():
                self._turns.looked(name, step, drift, trainable=self._source.is_trainable(name))
            names = names[count:]
            if self._budget.credit < (1 - _LOOKING) * credit or credit <= 0:
                break

    def _read(self, due: _Due) -> None:
        """Here: what there is credit for, and more, as what it takes becomes known."""
        if not self._has_room(due):
            return
        forced = not self.under_way_here
        while names := self._choose(due, forced=forced and not due.begun):
            for count, name in enumerate(names):
                if due.read and self._budget.credit < 0:
                    return
                if not self._worker.has_room(name):
                    self._drop(due.step, len(names) - count)
                    return
                self._begin(due, name)
            if due.here:
                return

    def _share(self, due: _Due, replicas: Coordinator) -> None:
        """Here and on other ranks, each for as long as the credit says."""
        if not replicas.has_joined:
            replicas.join(self._source.fingerprint())
            self._read(due)
            return
        shares: dict[int, list[str]] = {0: []}
        try:
            if self._has_room(due):
                ranks = [0, *replicas.helpers]
                names = self._choose(due, ranks=len(ranks))
                shares = share_out({name: self._turns.expected(name) for name in names}, ranks)
        finally:  # they wait for it, whatever fails here
            replicas.assign(due.step, shares)
        mine = shares.pop(0)
        moved = {name: self._mark(due, name) for names in shares.values() for name in names}
        if moved:
            poll = partial(_with_drift, moved, partial(replicas.answered, due.step))
            due.elsewhere = Task(tuple(moved), poll, partial(replicas.give_up, due.step))
        for count, name in enumerate(mine):
            if not self._worker.has_room(name):
                self._drop(due.step, len(mine) - count)
                return
            self._begin(due, name)

    def _choose(self, due: _Due, *, ranks: int = 1, forced: bool = True) -> list[str]:
        under_way = (self._turns.expected(name) for each in self._due for task in each.here for name in task.names)
        credit = self._budget.credit * ranks - sum(under_way)
        return self._turns.choose(due.step, credit, without=due.begun, forced=forced)

    def _has_room(self, due: _Due) -> bool:
        """Take a due step into the queue; not where that is full."""
        if self._due and self._replicas is not None and due.since - self._due[0].since > self._replicas.patience:
            self._give_up(self._due[0], elsewhere_only=True)
        if len(self._due) >= QUEUE and not self._due[0].is_complete:
            self._drop(due.step, len(self._choose(due)))
            return False
        self._due.append(due)
        return True

    def _begin(self, due: _Due, name: str) -> None:
        moved = self._mark(due, name)
        try:
            due.here.append(self._worker.begin(name, due.step, moved=moved))
        except BaseException:  # Ctrl-C, say
            self._turns.lost(name)
            raise
        if self._worker.on_the_spot:
            self._collect(due)

    def _mark(self, due: _Due, name: str) -> float:
        due.begun.add(name)
        self._turns.begun(name, due.step)
        return self._source.mark(name)

    def _collect(self, due: _Due) -> None:
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

    def _take(self, due: _Due, task: Task, answer: Answer) -> None:
        for name, (layer, seconds) in answer.items():
            due.read[name] = replace(layer, host_step=due.host_step)
            due.seconds += seconds
            self._turns.took(name, seconds, readable=layer.status == "ok")
        lost = [name for name in task.names if name not in answer]
        self.dropped += len(lost)
        for name in lost:
            self._turns.lost(name)

    def _give_up(self, due: _Due, *, elsewhere_only: bool = False) -> None:
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
            count = self.dropped - before
            _log.warning("esdmon: %d readings of step %d were not finished in time, and are lost.", count, due.step)

    def _drop(self, step: int, count: int) -> None:
        if count and not self.dropped:
            _log.warning(
                "esdmon: at step %d %d readings were left out, since too many are under way: choose a larger every= or "
                "a smaller budget=. This is logged once; monitor.dropped counts all.",
                step,
                count,
            )
        self.dropped += count

    def _tell_if_over_budget(self) -> None:
        if self._told or not self._budget.is_exceeded:
            return
        self._told = True
        _log.warning(
            "esdmon: one matrix at each due step takes %.1f %% of the run, and budget=%g: choose a larger every=.",
            100 * self._budget.overhead,
            self._budget.share,
        )

    def _report(self, due: _Due) -> Report:
        names = self._turns.names
        self.latest |= {name: due.read[name] for name in names if name in due.read}
        return Report(
            due.step,
            tuple(self._latest(name, due) for name in names if name in self.latest),
            self._source.coverage,
            due.seconds,
            waiting=tuple(name for name in names if name not in self.latest),
            overhead=self._budget.overhead,
            host_step=due.host_step,
            max_tags=self._max_tags,
        )

    def _latest(self, name: str, due: _Due) -> LayerReport:
        layer = self.latest[name]
        if layer.step == due.step:
            return layer
        drift = due.drift.get(name, math.nan)
        trainable = layer.trainable and self._turns.is_trainable(name)
        return replace(layer, emitted_step=due.step, trainable=trainable, drift=drift, unchanged=drift <= TOLERANCE)


def _with_drift(moved: Mapping[str, float], poll: Callable[[], Answer | None]) -> Answer | None:
    """A rank compares with what it read itself; how far a matrix has moved since any last reading, rank 0 knows."""
    answer = poll()
    if answer is None:
        return None
    return {name: (replace(layer, update_ratio=moved[name]), seconds) for name, (layer, seconds) in answer.items()}
