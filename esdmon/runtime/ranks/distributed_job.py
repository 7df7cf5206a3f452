"""Define `DistributedJob`, which plans on rank 0 which rank reads which matrices at the next due step."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import final

from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.records import Coverage, LayerReport
from esdmon.runtime.ranks.assignments import Assigned, Assignments
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Holdings
from esdmon.runtime.ranks.membership import Membership
from esdmon.runtime.ranks.messages import Assignment, Plan
from esdmon.runtime.ranks.names import JobNames
from esdmon.runtime.ranks.norms import JobNorms, JobScreening
from esdmon.runtime.ranks.rank_faults import RankFaults
from esdmon.runtime.ranks.sharing import Capacities, Reads, Sharing
from esdmon.runtime.workers.source import Answer, Task
from esdmon.schedule.budget import Budget
from esdmon.schedule.polls import between


@final
class DistributedJob:
    """The ranks of a job, of which this is rank 0.

    A rank that fails three times in a row, by not answering or by not serving its fragment, is paused. Other ranks that
    hold the same weights replace it; matrices that only this rank holds are not read, with this reason.

    Args:
        ranks: exchanges messages with the other ranks.
        own: rank 0's own part of the work.
        faults: counts the failures of each rank, and pauses it.
        budget: of rank 0.
        limits: limits on bytes of copies and seconds of waiting.
        escalates: whether alerts may request readings between due steps.
    """

    def __init__(
        self,
        ranks: Coordinator,
        own: Assignments,
        faults: Faults,
        budget: Budget,
        *,
        limits: Limits,
        escalates: bool = False,
    ) -> None:
        self._ranks = ranks
        self._own = own
        self.faults = RankFaults(faults)
        """Counts the ranks that fail."""
        self._limits = limits
        self._escalates = escalates
        self._has_elsewhere = False
        """True if there are matrices that rank 0 cannot read alone."""
        self._asked: tuple[int, Plan] | None = None
        """The last extra plan, with the step of its poll."""
        self._now: Plan | None = None
        """The extra plan of this step."""
        self.membership = Membership(ranks, self.faults.is_paused)
        """The ranks that watch, and what they hold."""
        self.names = JobNames(own.parts)
        """The names of matrices in the job, and in rank 0's own model."""
        self._sharing = Sharing(limits.copied_bytes)
        self.capacities = Capacities(budget)
        """The reading capacity of each rank."""
        self._ending = 0
        self._norms = JobNorms(ranks)
        self._to_screen: tuple[Collection[str], Plan] | None = None
        """The matrices that the ranks screen at this due step, and its plan; None if there is none."""
        self._given: set[str] = set()
        """Parameters whose holders are in the job's store, for this version."""
        self._unreadable: set[str] = set()

    @property
    def holdings(self) -> Holdings:
        """Return the holdings of all ranks, as of the last `update_holdings`."""
        return self.membership.known.holdings

    @property
    def timeout(self) -> float:
        """Return the seconds after which an answer is given up."""
        return self._ranks.timeout

    def refresh(self) -> bool:
        """Look whether rank 0's model has changed; return True where it has."""
        return self._own.announcer.refresh()

    def get_ready(self) -> bool:
        """Announce the table of rank 0 before the first due step, and take the tables of the others.

        Returns:
            Whether the matrices have changed.
        """
        has_changed = self._own.announcer.get_ready()
        return self.update_holdings(is_due=False) or has_changed

    def begin(self, step: int) -> Assigned | None:
        """Begin the planned readings of this due step; return None if there is no plan."""
        self._asked = self._now = None
        assigned = self._own.begin(step)
        self._to_screen = None
        if assigned is not None:
            self._to_screen = self._norms.begin(step), assigned.plan
            self.faults.begin(step, assigned.plan, assigned.failures)
        return assigned

    def screen(self, step: int) -> tuple[Collection[str], float]:
        """Begin to compute the norms that were planned for this due step, after `begin`.

        Returns:
            The matrices, and the seconds that rank 0's parts are expected to take on an accelerator.
        """
        if self._to_screen is None:
            return (), 0.0
        names, plan = self._to_screen
        return names, self._own.screen(step, plan)

    def screened(self) -> list[JobScreening]:
        """Return the norms that all ranks have sent since the last call."""
        self._own.norms.send()
        return self._norms.take()

    def may_screen(self, name: str) -> bool:
        """Return whether the ranks can compute norms of a matrix that rank 0 does not hold completely."""
        entry = self.holdings.matrices.get(name)
        if entry is None or entry.reason or not entry.side:
            return False
        return bool(entry.parameters) or not self.names.whole(name)

    def update_holdings(self, *, is_due: bool = True) -> bool:
        """Update the holdings from new tables, and from paused and closed ranks; see `Membership.update`."""
        if not self.membership.update(self._own.announcer.n_listed, is_due=is_due):
            return False
        known = self.membership.known
        self.names.update(known.holdings)
        self._has_elsewhere = any(each.parameters or 0 not in each.readers for each in known.holdings.matrices.values())
        self._given.clear()
        self._sharing.keep(known.tables)
        reading = [rank for rank in self.membership.present if rank not in known.paused]
        self.capacities.keep({rank: known.tables[rank] for rank in reading})
        return True

    def assign(self, names: Mapping[str, float], ranks: Mapping[int, Reads]) -> tuple[Assignment, ...]:
        """Return the assignments of matrices to ranks, and send the holders of their parts.

        Args:
            names: matrices in order of priority; see `Sharing.share`.
            ranks: how each reads.
        """
        assignments = self._sharing.share(names, self.holdings, ranks)
        for parameter in {name for assignment in assignments for name in assignment.parameters} - self._given:
            self._ranks.give_holders(self.membership.known.version, parameter, self.holdings.holders[parameter])
            self._given.add(parameter)
        return assignments

    def announce(
        self,
        step: int | None,
        assignments: tuple[Assignment, ...],
        *,
        gap: int = 0,
        ending: int = 0,
        to_screen: Collection[str] = (),
    ) -> None:
        """Announce what each rank reads at the next due step.

        Args:
            step: the current due step; None before the first.
            assignments: the result of `assign`.
            gap: number of steps between the last two due steps; 0 if not known.
            ending: number of blocks of steps in which readings end.
            to_screen: further matrices, whose norms are computed at that step.
        """
        self._ending = ending if self.membership.pauses else 0
        may_poll = self._escalates and self._has_elsewhere and not self.faults.is_asking_paused()
        after = between(gap, self._ranks.size) if may_poll else ()
        norms = self._norms.plan(to_screen, self.holdings)
        plan = Plan(self.membership.known.version, assignments, after, self._ending, norms)
        self._ranks.give_plan(step, plan)

    @property
    def next_poll(self) -> int | None:
        """Return the step at which all ranks poll the store next for an extra plan; None before the next due step."""
        return None if self.faults.is_asking_paused() else self._own.polls.next

    def ask(self, names: Mapping[str, float], ranks: Mapping[int, Reads]) -> None:
        """Announce the rank that reads each of these matrices at the next poll. Each poll has one plan."""
        at = self.next_poll
        if at is not None:
            plan = Plan(self.membership.known.version, self.assign(names, ranks), (), self._ending)
            self._ranks.give_extra_plan(at, plan)
            self._asked = at, plan

    def is_poll(self, step: int) -> bool:
        """Return whether all ranks poll at this unscheduled step, and readings were requested."""
        expected = self._own.polls.take(step)
        self._now = self._asked[1] if self._asked is not None and self._asked[0] == expected else None
        return self._now is not None

    def begin_asked(self, step: int) -> Assigned | None:
        """Begin the requested readings at this poll; return None if there are none."""
        return None if self._now is None else self._own.follow(self._now, step)

    def others(self, step: int, assigned: Assigned) -> Task | None:
        """Return the readings that other ranks have begun; None if there are none."""
        assignments = [assignment for assignment in assigned.plan.assignments if assignment.owner]
        if not assignments:
            return None
        ranks = sorted({assignment.owner for assignment in assignments})

        def take() -> Answer:
            # Rank 0 has all readings of a matrix that it holds completely; any other rank has fewer.
            answer = self._take(step, ranks)
            return {name: (_completed(layer, assigned), seconds) for name, (layer, seconds) in answer.items()}

        def poll() -> Answer | None:
            awaited = [rank for rank in ranks if rank not in self.membership.left]
            return take() if self._ranks.has_answers(step, awaited) else None

        return Task(tuple(name for assignment in assignments for name in assignment.names), poll, take)

    def _take(self, step: int, ranks: Iterable[int]) -> Answer:
        """Return the readings that other ranks have sent; record how fast each rank reads, or that it fails."""
        answers = self._ranks.take_answers(step, ranks)
        self.capacities.answered(answers.paces, answers.seconds)
        missing = tuple(rank for rank in answers.missing if rank not in self.membership.left)
        self.faults.answered(step, replace(answers, missing=missing))
        return answers.readings

    def settle(self, step: int) -> None:
        """Count which ranks have given their fragments, and which have not, once all readings of a step are there."""
        self.faults.settle(step, set(self.membership.present) - {0})

    def unreadable(self, step: int) -> dict[str, LayerReport]:
        """Return a record with the reason for each matrix that no rank can read.

        There are no records while ranks are still announcing their tables, and none for a matrix at the first due step
        at which it cannot be read: at the end of a run other ranks close while rank 0 is in its last step.
        """
        before, self._unreadable = self._unreadable, self.holdings.missing if self.membership.is_settled else set()
        both = before & self._unreadable  # computed once: in a job of which a rank has died these may be all matrices
        return {
            name: LayerReport(name, "skipped", step, entry.reason)
            for name, entry in self.holdings.matrices.items()
            if name in both
        }

    def coverage(self, own: Coverage) -> Coverage:
        """Return the coverage of all ranks' models; before any table is known, rank 0's own."""
        return self.holdings.coverage if self.membership.known.tables else own

    def nominal(self, own: Mapping[str, float]) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix; before any table is known, of rank 0's own."""
        return {name: entry.seconds for name, entry in self.holdings.matrices.items()} or dict(own)

    def restart(self) -> None:
        """Start again from a checkpoint that all ranks load."""
        self._own.restart()
        self._norms.forget()
        self._asked = None
        self.faults.restart()

    def close(self) -> None:
        """Let the other ranks fetch the last copies, and release the store."""
        self._own.close(self._limits.fragment_seconds)


def _completed(layer: LayerReport, assigned: Assigned) -> LayerReport:
    """Return another rank's reading, completed with rank 0's values of the matrix: its move and last sampled step."""
    if layer.name in assigned.moved:
        layer = replace(layer, update_ratio=assigned.moved[layer.name]())
    sample = assigned.sampled.get(layer.name)
    if sample is None or math.isnan(sample.ratio):
        return layer
    return replace(layer, step_ratio=sample.ratio, step_growth=sample.growth, zero_gradient=sample.zero_gradient)
