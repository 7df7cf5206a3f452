"""Sweeps of a large model by the ranks of a job, on a clock that is a number; see `tests.benchmarks.sweep`."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esdmon.limits import Limits
from esdmon.runtime.coordination import Job
from esdmon.runtime.holdings import Holdings, Listed, Part, Table, join
from esdmon.runtime.sharing import Sharing
from esdmon.schedule.budget import Budget
from esdmon.schedule.fragments import Fragment
from esdmon.schedule.priority import ReadPriority
from esdmon.schedule.workers import Workers
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
    ranks = [
        Rank(
            Threads(Workers(share, lambda _own: idle // 2, with_ranks=True, clock=clock), sizes),
            share,
            is_charged_in_full,
        )
        for _ in range(model.ranks)
    ]
    budget = Budget(share, clock=clock, cpu_clock=lambda: 0.0, rate=lambda: ranks[0].pace * share)
    turns = ReadPriority(costs)
    sharing = Sharing(Limits().copied_bytes)
    sharing.keep(range(model.ranks))
    budget.start()
    norms = Norms(clock, [*costs], Screened(clock, {}))
    read: dict[str, float] = {}
    under_way: dict[str, float] = {}
    paces = dict.fromkeys(range(model.ranks), 1.0)
    planned: Sequence[Job] = sharing.share(turns.choose(every, model.ranks * budget.credit), holdings, paces)
    lost = 0.0
    for at in itertools.count(1):
        slow = step * SLOWER * sum(len(rank.threads.running) for rank in ranks)
        lost += slow
        clock.now += step + slow
        for place, rank in enumerate(ranks):
            rank.threads.workers.step(is_busy=bool(rank.threads.running))
            for name in rank.answered(clock.now):
                paces[place] = rank.pace
                turns.took(name, costs[name])
                read.setdefault(name, clock.now)
                norms.read[name] = clock.now
                del under_way[name]
                if not place:
                    budget.read(seconds[name])
        if at % every:
            continue
        earned = budget.earn(at_most=2 * turns.sweep)
        turns.pass_by()
        for name in turns.to_look_at():
            turns.looked(name, at, DRIFT, trainable=True)
        norms.look()
        for place, rank in enumerate(ranks):
            names = [name for job in planned if job.owner == place for name in job.names]
            rank.begin(names, seconds)
            for name in names:
                turns.begun(name, at)
                under_way[name] = seconds[name]
                clock.now += BLOCKED
                lost += BLOCKED
            rank.threads.finished(clock.now)
        paces[0] = ranks[0].pace
        credit = sum(budget.credit_at(pace, ahead=earned) for pace in paces.values()) - sum(under_way.values())
        names = turns.choose(at + every, credit, without=under_way, ahead=True)
        planned = sharing.share(names, holdings, paces) if max(len(rank.answers) for rank in ranks) < 4 else ()
        if (len(read) == len(costs) and clock.now > 2 * until(read, costs, None)) or clock.now > limit:
            break
    kinds, depths, whole = (until(read, costs, count) for count in (1, 3, None))
    return Times(kinds, depths, whole, lost / clock.now, norms.first, norms.oldest)
