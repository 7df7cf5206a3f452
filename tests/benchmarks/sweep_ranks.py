"""Sweeps of a large model by the ranks of a job, on a clock that is a number; see `tests.benchmarks.sweep`."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esdmon.limits import Limits
from esdmon.runtime.coordination import Job
from esdmon.runtime.holdings import Holdings, Listed, Part, Table, join
from esdmon.runtime.sharing import Reads, Sharing
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
    Screened,
    Threads,
    Times,
    seconds_of,
    until,
)

HOST = 8  # ranks
LINK = 1e9  # bytes a second between two ranks


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
        return 1.0 if self.is_charged_in_full else max(1.0, self.threads.workers.count / self.share)

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
class Ledger:
    """What rank 0 knows of all ranks: how fast they read, what they may begin, and what they have not finished."""

    ranks: Sequence[Rank]
    budget: Budget
    seconds: Mapping[str, float]
    credits: dict[int, float] = field(default_factory=dict)
    paces: dict[int, float] = field(default_factory=dict)
    under_way: dict[str, int] = field(default_factory=dict)

    def pace(self, place: int) -> float:
        """As it has answered; before that, that of rank 0."""
        return self.paces.get(place, self.ranks[0].pace) if place else self.ranks[0].pace

    def earn(self, seconds: float, at_most: float) -> None:
        """As `Team.earn`."""
        for place in range(1, len(self.ranks)):
            most = at_most / self.pace(place)
            credit = self.credits.get(place, 0.0) + seconds
            self.credits[place] = max(-Limits().advance_seconds - most, min(most, credit))

    def begin(self, jobs: Sequence[Job]) -> None:
        """Let each rank begin what it was assigned, of one matrix each."""
        self.under_way |= {job.names[0]: job.owner for job in jobs}
        for place in {job.owner for job in jobs}:
            self.ranks[place].begin([job.names[0] for job in jobs if job.owner == place], self.seconds)

    def answered(self, place: int, name: str) -> None:
        """Take a reading up."""
        del self.under_way[name]
        self.paces[place] = self.ranks[place].pace
        if place:
            self.credits[place] = self.credits.get(place, 0.0) - self.seconds[name] / self.pace(place)
        else:
            self.budget.read(self.seconds[name])

    def reads(self, ahead: float) -> dict[int, Reads]:
        """As `Team.reads`."""
        left = dict.fromkeys(range(len(self.ranks)), 0.0)
        for name, place in self.under_way.items():
            left[place] += self.seconds[name]
        own = {place: self.credits.get(place, 0.0) if place else None for place in left}
        return {
            place: Reads(
                self.pace(place),
                self.budget.credit_at(self.pace(place), ahead=ahead, credit=own[place]) - waiting,
                self.seconds.__getitem__,
            )
            for place, waiting in left.items()
        }


def simulate_ranks(
    model: Model,
    *,
    idle: int,
    every: int,
    step: float,
    share: float,
    is_charged_in_full: bool = False,
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
    sharing = Sharing(Limits().copied_bytes)
    sharing.keep(range(model.ranks))
    ledger = Ledger(ranks, budget, seconds)
    budget.start()
    norms = Norms(clock, [*costs], Screened(clock, {}))
    read: dict[str, float] = {}

    def plan(then: int, ahead: float) -> Sequence[Job]:
        reads = ledger.reads(ahead)
        credit = sum(max(0.0, each.credit) for each in reads.values())
        return sharing.share(turns.choose(then, credit, without=ledger.under_way, ahead=True), holdings, reads)

    planned = plan(every, 0.0)
    lost = 0.0
    for at in itertools.count(1):
        slow = step * SLOWER * _most_of_a_host(ranks)
        lost += slow
        clock.now += step + slow
        for place, rank in enumerate(ranks):
            rank.threads.workers.step(is_busy=bool(rank.threads.running))
            for name in rank.answered(clock.now):
                ledger.answered(place, name)
                turns.took(name, costs[name])
                read.setdefault(name, clock.now)
                norms.read[name] = clock.now
        if at % every:
            continue
        earned = budget.earn(at_most=2 * turns.sweep)
        ledger.earn(earned, 2 * turns.sweep)
        turns.pass_by()
        for name in turns.to_look_at():
            turns.looked(name, at, DRIFT, trainable=True)
        norms.look()
        ledger.begin(planned)
        for job in planned:
            turns.begun(job.names[0], at)
            clock.now += BLOCKED
            lost += BLOCKED
        for rank in ranks:
            rank.threads.finished(clock.now)
        planned = plan(at + every, earned) if max(len(rank.answers) for rank in ranks) < 4 else ()
        if (len(read) == len(costs) and clock.now > 2 * until(read, costs, None)) or clock.now > limit:
            break
    kinds, depths, whole = (until(read, costs, count) for count in (1, 3, None))
    return Times(kinds, depths, whole, lost / clock.now, norms.first, norms.oldest)


def _rank(sizes: Mapping[str, int], idle: int, share: float, clock: Clock, is_charged_in_full: bool) -> Rank:  # noqa: FBT001
    workers = Workers(share, lambda _own: idle // 2, with_ranks=True, clock=clock)
    return Rank(Threads(workers, sizes), share, is_charged_in_full)


def _most_of_a_host(ranks: Sequence[Rank]) -> int:
    """Return the threads that read on the host where most do: the others wait for it in each step."""
    running = [len(rank.threads.running) for rank in ranks]
    return max(sum(running[start : start + HOST]) for start in range(0, len(running), HOST))


def _end_within(ranks: Sequence[Rank], seconds: float, step: float) -> None:
    for rank in ranks:
        rank.threads.workers.ending = blocks_to_end(seconds, step)
