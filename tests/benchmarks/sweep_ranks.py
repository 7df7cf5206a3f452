"""Simulate sweeps of a large model by the ranks of a job, with a simulated clock; see `tests.benchmarks.sweep`."""

import itertools
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esdmon.limits import Limits
from esdmon.runtime.pipeline.screening import Screening
from esdmon.runtime.ranks.holdings import Holdings, Listed, Part, Table, join
from esdmon.runtime.ranks.messages import Assignment
from esdmon.runtime.ranks.norms import JobScreening
from esdmon.runtime.ranks.sharing import Capacities, Sharing
from esdmon.schedule.budget import Budget
from esdmon.schedule.fragments import Fragment
from esdmon.schedule.priority import ReadPriority
from esdmon.schedule.workers import Workers, blocks_to_end
from tests.benchmarks.sweep_alone import (
    BLOCKED,
    DRIFT,
    SLOWER,
    Clock,
    Model,
    Norms,
    Threads,
    Times,
    seconds_of,
    until,
)

HOST = 8  # ranks
LINK = 1e9  # bytes a second between two ranks
SQUARED = 2e-4  # seconds of the hook for the norm of a fragment


class OwnModel:
    """The model of rank 0, which has all of no matrix."""

    def whole(self, _name: str) -> str:
        """Return no name."""
        return ""

    def screened(self) -> list[Any]:
        """Return nothing."""
        return []


@dataclass
class Fragments:
    """Ranks that compute the norms of their fragments, which rank 0 knows at the next due step."""

    clock: Clock
    own: OwnModel = field(default_factory=OwnModel)
    times: dict[str, float] = field(default_factory=dict)
    planned: Collection[str] = ()
    """For the next due step."""
    sent: list[tuple[int, tuple[str, ...], float]] = field(default_factory=list)

    def may_screen(self, _name: str) -> bool:
        """Return True: each matrix is one parameter."""
        return True

    def screen(self, step: int) -> tuple[Collection[str], float]:
        """Let the loop wait for what was planned."""
        begun, self.planned = self.planned, ()
        self.clock.now += SQUARED * len(begun)
        if begun:
            self.sent.append((step, tuple(begun), self.clock.now))
        return begun, 0.0

    def screened(self) -> list[JobScreening]:
        """Learn what the ranks have sent; no norm has changed, and no rank was slower than rank 0."""
        sent, self.sent = self.sent, []
        for _, names, when in sent:
            self.times |= dict.fromkeys(names, when)
        return [JobScreening(step, names, (), SQUARED * len(names), SQUARED * len(names)) for step, names, _ in sent]


@dataclass
class Rank:
    """A rank of a job: its threads, and what it has to answer to rank 0."""

    threads: Threads
    share: float
    is_charged_in_full: bool
    answers: deque[list[str]] = field(default_factory=deque)
    done: set[str] = field(default_factory=set)

    @property
    def pace(self) -> float:
        """Seconds of reading for each second of its budget."""
        return 1.0 if self.is_charged_in_full else max(1.0, self.threads.workers.rate / self.share)

    def begin(self, names: Sequence[str], seconds: Mapping[str, float]) -> None:
        """Queue what is assigned to it at a due step."""
        self.answers.append([*names])
        self.threads.queued.extend((name, seconds[name]) for name in names)

    def answered(self, now: float) -> list[str]:
        """Return what is answered by now: the readings of a due step when all of them are finished."""
        self.done.update(self.threads.finished(now))
        found: list[str] = []
        while self.answers and self.done.issuperset(self.answers[0]):
            found += self.answers.popleft()
        self.done.difference_update(found)
        return found


def holdings_of(shapes: Mapping[str, tuple[int, int]], ranks: int) -> Holdings:
    """Return what the ranks of a job hold of weights of 16 bits, cut by rows."""
    listed = {name: Listed(seconds_of(*sorted(shape)), (f"{name}.weight",)) for name, shape in shapes.items()}
    tables = {}
    for rank in range(ranks):
        parts = {}
        for name, (rows, columns) in shapes.items():
            count = rows // ranks
            fragment = Fragment((rank * count, 0), (count, columns))
            parts[f"{name}.weight"] = Part((rows, columns), 2, fragment, str(rank), 0)
        tables[rank] = Table(rank, f"host {rank}", listed, parts)
    return join(tables)


@dataclass
class UnderWay:
    """What ranks have begun and not answered."""

    ranks: Sequence[Rank]
    seconds: Mapping[str, float]
    owners: dict[str, int] = field(default_factory=dict)

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Let each rank begin what it was assigned, of one matrix each."""
        self.owners |= {assignment.names[0]: assignment.owner for assignment in assignments}
        for place in {assignment.owner for assignment in assignments}:
            self.ranks[place].begin(
                [assignment.names[0] for assignment in assignments if assignment.owner == place], self.seconds
            )

    def step(self, now: float) -> list[tuple[int, str]]:
        """Count a step, and return what is answered by now, with the rank."""
        for rank in self.ranks:
            rank.threads.workers.step(is_busy=bool(rank.threads.running))
        found = [(place, name) for place, rank in enumerate(self.ranks) for name in rank.answered(now)]
        for _, name in found:
            del self.owners[name]
        return found

    def by_rank(self) -> dict[int, float]:
        """Return the seconds of each rank."""
        left = dict.fromkeys(range(len(self.ranks)), 0.0)
        for name, place in self.owners.items():
            left[place] += self.seconds[name]
        return left


def simulate_ranks(
    model: Model,
    *,
    idle: int,
    every: int,
    step: float,
    share: float,
    is_charged_in_full: bool = False,
    is_screened: bool = True,
    limit: float = 3e6,
) -> Times:
    """Run the schedule, the budget, the sharing and the threads of all ranks until each matrix was read twice."""
    clock = Clock()
    shapes = model.shapes()
    holdings = holdings_of(shapes, model.ranks)
    costs = {name: entry.seconds for name, entry in holdings.matrices.items()}
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    seconds = {name: cost + sizes[name] / LINK for name, cost in costs.items()}
    ranks = [_rank(sizes, idle, share, clock, is_charged_in_full) for _ in range(model.ranks)]
    _end_within(ranks, max(seconds.values()), step)
    budget = Budget(share, clock=clock, cpu_clock=lambda: 0.0, rate=lambda: ranks[0].pace * share)
    turns = ReadPriority(costs)
    sharing, capacities = _shared_by(ranks, budget)
    under_way = UnderWay(ranks, seconds)
    budget.start()
    fragments: Any = Fragments(clock)
    screening = Screening(fragments.own, turns, fragments.own, budget, fragments)
    norms = Norms(clock, [*costs], fragments)
    read: dict[str, float] = {}

    def plan(then: int, ahead: float) -> Sequence[Assignment]:
        reads = capacities.reads(under_way.by_rank(), ahead=ahead)
        names = turns.choose(
            then, sum(max(0.0, each.credit) for each in reads.values()), without=under_way.owners, ahead=True
        )
        shared = sharing.share({name: seconds[name] for name in names}, holdings, reads)
        if is_screened:
            fragments.planned = screening.ahead(fragments, {each.names[0] for each in shared})
        return shared

    planned = plan(every, 0.0)
    for at in itertools.count(1):
        clock.now += step * (1 + SLOWER * _most_of_a_host(ranks))
        for place, name in under_way.step(clock.now):
            turns.took(name, costs[name])
            read.setdefault(name, clock.now)
            norms.read[name] = clock.now
            if place:
                capacities.answered({place: ranks[place].pace}, {place: seconds[name]})
            else:
                budget.read(seconds[name])
        if at % every:
            continue
        earned = budget.earn(at_most=2 * turns.sweep)
        capacities.earn(earned, 2 * turns.sweep)
        for name in turns.to_measure():
            turns.drifted(name, at, DRIFT, trainable=True)
        norms.look()
        under_way.begin(planned)
        screening.screen_together(fragments, at)
        for assignment in planned:
            turns.begun(assignment.names[0], at)
            clock.now += BLOCKED
        _begin_all(ranks, clock.now)
        planned = plan(at + every, earned) if max(len(rank.answers) for rank in ranks) < 4 else ()
        screening.screen(at, without=(), latest={})
        turns.pass_by()
        if (len(read) == len(costs) and clock.now > 2 * until(read, costs, None)) or clock.now > limit:
            break
    kinds, depths, whole = (until(read, costs, count) for count in (1, 3, None))
    return Times(kinds, depths, whole, 1 - at * step / clock.now, norms.first, norms.oldest)


def _shared_by(ranks: Sequence[Rank], budget: Budget) -> tuple[Sharing, Capacities]:
    sharing = Sharing(Limits().copied_bytes)
    sharing.keep(range(len(ranks)))
    capacities = Capacities(budget)
    capacities.keep({place: Table(place, "", {}, {}, copies=True, pauses=True) for place in range(len(ranks))})
    return sharing, capacities


def _rank(sizes: Mapping[str, int], idle: int, share: float, clock: Clock, is_charged_in_full: bool) -> Rank:  # noqa: FBT001
    workers = Workers(share, lambda _own: idle // 2, with_ranks=True, clock=clock)
    return Rank(Threads(workers, sizes), share, is_charged_in_full)


def _begin_all(ranks: Sequence[Rank], now: float) -> None:
    for rank in ranks:
        rank.done.update(rank.threads.finished(now))


def _most_of_a_host(ranks: Sequence[Rank]) -> int:
    """Return the threads that read on the host where most do: the others wait for it in each step."""
    running = [len(rank.threads.running) for rank in ranks]
    return max(sum(running[start : start + HOST]) for start in range(0, len(running), HOST))


def _end_within(ranks: Sequence[Rank], seconds: float, step: float) -> None:
    for rank in ranks:
        rank.threads.workers.ending = blocks_to_end(seconds, step)
