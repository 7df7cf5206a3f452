"""Define `Assignments`: the work of each rank at a due step: serve copies of its fragments, read its matrices.

In the training's thread the store is polled once for rank 0's plan, and copies are started, without waiting. Matrices
that need fragments of other ranks are assembled and read in a thread of the executor (`assembly.py`), as many at a time
as fit into memory.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import NoReturn, final

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.ranks.announcer import Announcer
from esdmon.runtime.ranks.assembly import Assembly
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.fragment_exchange import FragmentCopy, FragmentExchange, Moved, PeerError
from esdmon.runtime.ranks.holdings import Holder
from esdmon.runtime.ranks.memory_limit import MemoryLimit
from esdmon.runtime.ranks.messages import Assignment, Plan, Role
from esdmon.runtime.ranks.norms import OwnNorms
from esdmon.runtime.ranks.parts import ShardedSource
from esdmon.runtime.workers.executor import Executor
from esdmon.runtime.workers.source import Answer, Ratio, Task, unknown
from esdmon.schedule.polls import Polls
from esdmon.schedule.step_sample import StepSample
from esdmon.schedule.workers import steps_paused

_KEPT_STEPS = 3  # due steps whose copies are kept, this one included: readings may be as far behind


@dataclass(frozen=True, slots=True)
class Assigned:
    """The work that was begun at a due step."""

    plan: Plan
    tasks: tuple[Task, ...]
    """The tasks of this rank, with the names of the job."""
    moved: Mapping[str, Ratio]
    """‖ΔW‖/‖W‖ since the last reading, for matrices that this rank holds completely."""
    sampled: Mapping[str, StepSample] = field(default_factory=dict)
    """On rank 0: the last samples of single steps of these matrices."""
    failures: dict[int, str] = field(default_factory=dict)
    """Ranks that did not serve their fragment, and the reasons; complete when the tasks are finished."""


@final
class Assignments:
    """Do the work that rank 0 assigns to this rank; rank 0 uses it for its own part.

    Args:
        source: the matrices of this rank's model.
        executor: finishes readings.
        ranks: exchanges messages with the other ranks.
        limits: limits on bytes of copies and seconds of waiting.
    """

    def __init__(self, source: ShardedSource, executor: Executor, ranks: Coordinator, *, limits: Limits) -> None:
        self._source = source
        self.parts = source.parts
        """The parts of the job's weights on this rank."""
        self._executor = executor
        self._ranks = ranks
        self._limits = limits
        self._previous: int | None = None
        self._begun: deque[tuple[int, float]] = deque()
        """The last due steps, with their times; the first one belongs to the oldest kept copies."""
        self._ending = 0
        self._role = Role({}, {})
        self._version = 0
        self.polls = Polls()
        """The steps until the next due one at which all ranks poll the store for an extra plan."""
        self._holders = self._look_up_holders(0)
        self.announcer = Announcer(source, executor, ranks, limits)
        """What this rank has announced, and the copies that it serves."""
        self.memory_limit = MemoryLimit(limits.copied_bytes)
        """Limits the memory of parameters that this rank assembles."""
        self.norms = OwnNorms(source, ranks, executor.budget)

    def restart(self) -> None:
        """Start again from a checkpoint that all ranks load."""
        self._ranks.restart()
        self._begun.clear()
        self.norms.forget()
        self._previous = None
        self.polls.start(0, ())

    def begin(self, step: int) -> Assigned | None:
        """Serve the copies of a due step, and begin this rank's readings; return None if there is no plan."""
        previous, self._previous = self._previous, step
        if self.announcer.exchange is not None:
            self._expire(self.announcer.exchange, step)
        plan = self._ranks.plan(previous) if self.announcer.has_joined else None
        self.polls.start(step, () if plan is None else plan.polls)
        return None if plan is None else self.follow(plan, step)

    def poll(self, expected: int, step: int) -> Assigned | None:
        """Follow an extra plan of rank 0 between due steps; return None if there is none.

        Args:
            expected: the planned step of this poll.
            step: optimizer steps taken.
        """
        plan = self._ranks.extra_plan(expected)
        if plan is None:
            return None
        self.announcer.refresh()
        return self.follow(plan, step)

    def follow(self, plan: Plan, step: int) -> Assigned | None:
        """Serve the copies of a plan, and begin the readings of this rank; None if this rank has no role yet."""
        self._ending = plan.ending
        self._executor.end_within(plan.ending)
        if plan.version != self._version:
            role = self._ranks.role(plan.version)
            if role is None:
                return None
            self._role, self._version = role, plan.version
            self._holders = self._look_up_holders(plan.version)
        sampled = {}
        if not self._ranks.rank:  # only rank 0 samples steps
            sampled = {
                name: self._source.last_step(self.local(name))
                for assignment in plan.assignments
                for name in assignment.names
            }
        tasks: list[Task] = []
        moved: dict[str, Ratio] = {}
        failures: dict[int, str] = {}
        marked: dict[str, Callable[[], Moved]] = {}  # a parameter may be in several assignments of a step
        for assignment in plan.assignments:
            if assignment.parameters:
                own = self._copy(assignment, step, marked)
                if not self._ranks.rank:  # rank 0 measures how far each has moved since
                    for name in assignment.names:
                        self._source.mark(self.local(name))
                if assignment.owner == self._ranks.rank:
                    tasks.append(self._begin_assembled(assignment, step, own, failures))
            else:
                tasks += self._begin_whole(assignment, step, moved)
        return Assigned(plan, tuple(tasks), moved, sampled, failures)

    def screen(self, step: int, plan: Plan) -> float:
        """Begin to compute the norms that a plan requests from this rank, after `follow`.

        Returns:
            The seconds that this is expected to take on an accelerator.
        """
        parts = {self.local(name): name for name, where in plan.screened if where in self._role.copies}
        whole = {self.local(name): name for name, where in plan.screened if where == self._ranks.rank}
        return self.norms.compute(step, parts, whole) if parts or whole else 0.0

    def close(self, timeout: float) -> None:
        """Announce that this rank closes; wait until the others have fetched their copies, for some seconds at most."""
        if self.announcer.has_joined:
            with suppress(Exception):  # rank 0 and its store may be gone
                self._ranks.leave()
        if self.announcer.exchange is not None:
            self.announcer.exchange.drain(timeout, self._left)
            self.announcer.exchange.close()
        self._ranks.end()

    def local(self, name: str) -> str:
        """Return this rank's own name of a matrix or parameter of the job."""
        return self._role.local.get(name, name)

    def _left(self) -> Collection[int]:
        """Return the ranks that are known to have closed; none if the store does not exist any more."""
        with suppress(Exception):
            return self._ranks.left()
        return ()

    def _expire(self, exchange: FragmentExchange, step: int) -> None:
        """Discard copies of two due steps ago that no rank fetches any more, and no thread may still wait for."""
        now = time.monotonic()
        self._begun.append((step, now))
        while len(self._begun) > _KEPT_STEPS and self._begun[1][0] <= step - steps_paused(self._ending):
            self._begun.popleft()
        exchange.expire(min(self._begun[0][1], now - 2 * exchange.patience))

    def _copy(
        self, assignment: Assignment, step: int, marked: dict[str, Callable[[], Moved]]
    ) -> dict[str, FragmentCopy]:
        """Copy this rank's fragments: for its own reading, or for a reader that does not hold the same fragment."""
        own: dict[str, FragmentCopy] = {}
        for name in assignment.parameters:
            local = self.local(name)
            if not self.parts.has_fragment(local) or self.announcer.exchange is None:
                continue
            is_mine, key = assignment.owner == self._ranks.rank, self._key(step, assignment, name)
            try:
                moved = marked[local] = marked.get(local) or self.parts.mark(local)
                if is_mine:
                    own[local] = self.parts.copy(local), moved
                elif assignment.owner not in self._role.copies.get(name, (assignment.owner,)):
                    copy, size = (self.parts.copy(local), moved), self.parts.size(local)
                    self.announcer.exchange.keep(key, copy, size, owner=assignment.owner)
            except Exception as error:  # noqa: BLE001 -- the owner reports it; the other fragments are copied
                why = f"cannot read its part: {describe(error)}"
                if is_mine:
                    own[local] = _fails(self._ranks.rank, why)
                else:
                    self.announcer.exchange.fail(key, why, owner=assignment.owner)
        return own

    def _begin_whole(self, assignment: Assignment, step: int, moved: dict[str, Ratio]) -> Iterable[Task]:
        for name in assignment.names:
            local = self.local(name)
            if self.parts.is_here(local):
                moved[name] = self._source.mark(local)
                if assignment.owner == self._ranks.rank and self._executor.has_room(local):
                    yield _renamed(self._executor.begin(local, step, moved=moved[name]), {local: name})

    def _begin_assembled(
        self, assignment: Assignment, step: int, own: Mapping[str, FragmentCopy], failures: dict[int, str]
    ) -> Task:
        names = {self.local(name): name for name in assignment.parameters}
        assembly = Assembly(
            step,
            readings={name: self._begin_one(name, step) for name in assignment.names},
            keys={local: self._key(step, assignment, name) for local, name in names.items()},
            holders={local: partial(self._holders, name) for local, name in names.items()},
            own=own,
            until=time.monotonic() + self._limits.fragment_seconds,
            failures=failures,
            left=self._left,
        )
        read = partial(assembly.read, self._source, self.announcer.exchange, self.memory_limit, self._executor.clock)
        return self._executor.begin_later(assignment.names, step, read, sum(map(self.parts.size, own)))

    def _begin_one(self, name: str, step: int) -> Callable[[], LayerReport]:
        return self._source.begin(self.local(name), step, moved=unknown, copy=False)

    def _look_up_holders(self, version: int) -> Callable[[str], tuple[Holder, ...]]:
        """Return the function that looks up the holders of the fragments of a parameter, once per parameter."""
        return cache(partial(self._ranks.holders, version))

    def _key(self, step: int, assignment: Assignment, parameter: str) -> str:
        return f"{self._ranks.epoch}/{step}/{assignment.names[0]}/{parameter}"


def _fails(rank: int, why: str) -> FragmentCopy:
    """Return functions that raise the reason why there is no copy, in place of functions that return it."""

    def fail() -> NoReturn:
        raise PeerError(rank, f"rank {rank} {why}", answers=True)

    return fail, fail


def _renamed(task: Task, names: Mapping[str, str]) -> Task:
    """Return a task whose readings have the names in the job."""

    def poll() -> Answer | None:
        answer = task.poll()
        return None if answer is None else give(answer)

    def give(answer: Answer) -> Answer:
        return {names[name]: (replace(layer, name=names[name]), seconds) for name, (layer, seconds) in answer.items()}

    if all(own == other for own, other in names.items()):
        return task
    return Task(tuple(names[name] for name in task.names), poll, lambda: give(task.give_up()))
