"""Define `Team`, which plans on rank 0 which rank reads which matrices at the next due step."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias, final

from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.records import Coverage, LayerReport, Screened
from esdmon.runtime.ranks.assignments import Assigned, Assignments
from esdmon.runtime.ranks.coordination import Assignment, Coordinator, Plan
from esdmon.runtime.ranks.holdings import Holdings
from esdmon.runtime.ranks.norms import JobNorms
from esdmon.runtime.ranks.rank_faults import RankFaults
from esdmon.runtime.ranks.roster import Roster
from esdmon.runtime.ranks.sharing import Capacities, Reads, Sharing
from esdmon.runtime.workers.source import Answer, Task
from esdmon.schedule.polls import between

_log = logging.getLogger("esdmon")
_MOST_NAMED = 6  # matrices in a log line

ToScreen: TypeAlias = Callable[[Collection[str]], Mapping[str, int]]
"""Returns the sharded matrices whose norms are computed at a due step where these are read, with longer sides."""


def nothing(_read: Collection[str]) -> Mapping[str, int]:
    """Return no matrix to screen."""
    return {}


@final
class Team:
    """The ranks of a job, of which this is rank 0.

    A rank that fails three times in a row, by not answering or by not giving its fragment, is paused as any other part
    is. Other ranks that hold the same weights take its place; matrices that it holds alone are not read, with this as
    the reason.

    Args:
        ranks: the messages of the job.
        own: what rank 0 does itself.
        faults: counts the failures of each rank, and pauses it.
        limits: bytes of copies, and seconds of waiting.
        escalates: whether alerts may ask for readings between due steps.
    """

    def __init__(
        self, ranks: Coordinator, own: Assignments, faults: Faults, *, limits: Limits, escalates: bool = False
    ) -> None:
        self._ranks = ranks
        self._own = own
        self._faults = RankFaults(faults)
        self._limits = limits
        self._escalates = escalates
        self._has_elsewhere = False
        """Whether there are matrices that rank 0 cannot read alone."""
        self._asked: tuple[int, Plan] | None = None
        """The last extra plan, with the step of the poll that it is for."""
        self._now: Plan | None = None
        """The extra plan of this step."""
        self._roster = Roster(ranks, self._faults.is_paused)
        self._sharing = Sharing(limits.copied_bytes)
        self.capacities = Capacities(lambda: own.pace, advance=limits.advance_seconds)
        """How each rank reads."""
        self._ending = 0
        self._norms = JobNorms(ranks)
        self._to_screen: tuple[Collection[str], Plan] | None = None
        """The sharded matrices whose norms are computed at this due step, and its plan; None where there is none."""
        self._given: set[str] = set()
        """Parameters whose holders are in the job's store, for this version."""
        self._unreadable: set[str] = set()
        self._has_renamed = False
        self._local: Mapping[str, str] = {}

    @property
    def pauses(self) -> bool:
        """Return whether there are times at which threads of some rank begin no reading."""
        return self._roster.pauses

    @property
    def holdings(self) -> Holdings:
        """Return the holdings of all ranks, as of the last `update_holdings`."""
        return self._roster.known.holdings

    @property
    def timeout(self) -> float:
        """Return the seconds after which an answer is given up."""
        return self._ranks.timeout

    @property
    def is_alone(self) -> bool:
        """Return whether no other rank is known to watch."""
        return len(self._roster.present) <= 1

    @property
    def is_complete(self) -> bool:
        """Return whether all ranks of the job have announced their tables."""
        return self._roster.is_complete

    @property
    def is_settled(self) -> bool:
        """Return whether all ranks that watch are known."""
        return self._roster.is_settled

    def local(self, name: str) -> str:
        """Return rank 0's own name of a matrix of the job; empty where its model has none."""
        local = self._local.get(name, name)
        return local if self._own.parts.has(local) else ""

    def longer_side(self, name: str) -> int | None:
        """Return the longer side of a matrix of the job that is a region of one sharded parameter, else None."""
        entry = self.holdings.matrices.get(name)
        is_there = entry is not None and len(entry.parameters) == 1 and not entry.reason
        return self._own.parts.longer_side(self.local(name)) if is_there else None

    def is_here(self, name: str) -> bool:
        """Return whether rank 0 can read a matrix of the job alone, and knows it by this name."""
        return self._local.get(name, name) == name and self._own.parts.is_here(name)

    def renamed(self, layers: Mapping[str, LayerReport]) -> dict[str, LayerReport]:
        """Return readings of rank 0's matrices under their names in the job."""
        names = {name: self.holdings.names.get(0, {}).get(name, name) for name in layers}
        return {names[name]: replace(layer, name=names[name]) for name, layer in layers.items()}

    def refresh(self) -> bool:
        """Look whether rank 0's model has changed; return True where it has."""
        return self._own.refresh()

    def get_ready(self) -> bool:
        """Announce the table of rank 0 before the first due step, and take the tables of the others.

        Returns:
            Whether the matrices have changed.
        """
        has_changed = self._own.get_ready()
        return self.update_holdings(is_due=False) or has_changed

    def begin(self, step: int) -> Assigned | None:
        """Begin the planned readings of this due step; return None if there is no plan."""
        self._asked = self._now = None
        assigned = self._own.begin(step)
        self._to_screen = None
        if assigned is not None:
            self._to_screen = self._norms.begin(step), assigned.plan
            self._faults.begin(step, assigned.plan, assigned.failures)
        return assigned

    def screen(self, step: int) -> tuple[Collection[str], float]:
        """Begin to compute the norms of sharded matrices that were planned for this due step, after `begin`.

        Returns:
            The matrices, and the seconds that the own fragments are expected to take on an accelerator.
        """
        if self._to_screen is None:
            return (), 0.0
        names, plan = self._to_screen
        return names, self._own.screen(step, plan)

    def screened(self) -> list[Screened]:
        """Return the norms of sharded matrices that all ranks have sent since the last call."""
        self._own.norms.send()
        return self._norms.take()

    def update_holdings(self, *, is_due: bool = True) -> bool:
        """Update the holdings from new tables, and from paused and closed ranks; see `Roster.update`."""
        if not self._roster.update(self._own.n_listed, is_due=is_due):
            return False
        known = self._roster.known
        self._local = known.holdings.local_names(0)  # looked up for each matrix at each due step
        self._has_elsewhere = any(each.parameters or 0 not in each.readers for each in known.holdings.matrices.values())
        self._given.clear()
        self._sharing.keep(known.tables)
        reading = [rank for rank in self._roster.present if rank not in known.paused]
        self.capacities.keep({rank: known.tables[rank] for rank in reading})
        self._log_renamed()
        return True

    def look_who_left(self) -> None:
        """Look which ranks have closed their monitors; what these have not answered is given up."""
        self._roster.look_who_left()

    def plan(
        self,
        step: int | None,
        names: Mapping[str, float],
        ranks: Mapping[int, Reads],
        *,
        gap: int = 0,
        ending: int = 0,
        to_screen: ToScreen = nothing,
    ) -> None:
        """Announce the rank that reads each of these matrices at the next due step.

        Args:
            step: the due step; None before the first.
            names: in order of priority; see `Sharing.share`.
            ranks: how each reads.
            gap: the steps between due ones, as of the last two; 0 where that is not known.
            ending: in how many blocks of steps readings end.
            to_screen: returns the sharded matrices whose norms are computed there, besides those that are read.
        """
        self._ending = ending if self.pauses else 0
        may_poll = self._escalates and self._has_elsewhere and not self._faults.is_asking_paused()
        after = between(gap, self._ranks.size) if may_poll else ()
        assignments = self._assigned(names, ranks)
        read = {name for assignment in assignments for name in assignment.names}
        norms = self._norms.plan(to_screen(read), self.holdings)
        plan = Plan(self._roster.known.version, assignments, after, self._ending, norms)
        self._ranks.give_plan(step, plan)

    @property
    def next_poll(self) -> int | None:
        """Return the step at which all ranks poll the store next for an extra plan; None before the next due step."""
        return None if self._faults.is_asking_paused() else self._own.polls.next

    def ask(self, names: Mapping[str, float], ranks: Mapping[int, Reads]) -> None:
        """Announce the rank that reads each of these matrices at the next poll. Each poll has one plan."""
        at = self.next_poll
        if at is not None:
            plan = Plan(self._roster.known.version, self._assigned(names, ranks), (), self._ending)
            self._ranks.give_extra_plan(at, plan)
            self._asked = at, plan

    def is_poll(self, step: int) -> bool:
        """Return whether all ranks poll at this step, which is not due, and something was asked for."""
        expected = self._own.polls.take(step)
        self._now = self._asked[1] if self._asked is not None and self._asked[0] == expected else None
        return self._now is not None

    def begin_asked(self, step: int) -> Assigned | None:
        """Begin the requested readings at this poll; return None if there are none."""
        return None if self._now is None else self._own.follow(self._now, step)

    def _assigned(self, names: Mapping[str, float], ranks: Mapping[int, Reads]) -> tuple[Assignment, ...]:
        """Return the assignments of matrices to ranks, and send the holders of their parts."""
        assignments = self._sharing.share(names, self.holdings, ranks)
        for parameter in {name for assignment in assignments for name in assignment.parameters} - self._given:
            self._ranks.give_holders(self._roster.known.version, parameter, self.holdings.holders[parameter])
            self._given.add(parameter)
        return assignments

    def others(self, step: int, assigned: Assigned) -> Task | None:
        """Return the readings that other ranks have begun; None where they have none."""
        assignments = [assignment for assignment in assigned.plan.assignments if assignment.owner]
        if not assignments:
            return None
        ranks = sorted({assignment.owner for assignment in assignments})

        def take() -> Answer:
            # Rank 0 has seen all readings of a matrix of which it holds all; those of any other rank are fewer.
            answer = self._take(step, ranks)
            return {name: (_completed(layer, assigned), seconds) for name, (layer, seconds) in answer.items()}

        def poll() -> Answer | None:
            return (
                take()
                if self._ranks.has_answers(step, [rank for rank in ranks if rank not in self._roster.left])
                else None
            )

        return Task(tuple(name for assignment in assignments for name in assignment.names), poll, take)

    def _take(self, step: int, ranks: Iterable[int]) -> Answer:
        """Return the readings that other ranks have sent, and take note of how fast each reads, or that it fails."""
        answers = self._ranks.take_answers(step, ranks)
        self.capacities.answered(answers.paces, answers.seconds)
        missing = tuple(rank for rank in answers.missing if rank not in self._roster.left)
        self._faults.answered(step, replace(answers, missing=missing))
        return answers.readings

    def settle(self, step: int) -> None:
        """Count which ranks have given their fragments, and which have not, once all readings of a step are there."""
        self._faults.settle(step, set(self._roster.present) - {0})

    def settle_asked(self, step: int, missed: Collection[str]) -> None:
        """Count whether all ranks have done the requested readings at a poll; a rank that is ahead misses them."""
        self._faults.settle_asked(step, missed)

    def unreadable(self, step: int) -> dict[str, LayerReport]:
        """Return a record with the reason for each matrix that nobody can read.

        None while ranks are still announcing what they hold, and none where it was so at this due step for the first
        time: at the end of a run other ranks close while rank 0 is in its last step.
        """
        before, self._unreadable = self._unreadable, self.missing if self.is_settled else set()
        return {
            name: LayerReport(name, "skipped", step, entry.reason)
            for name, entry in self.holdings.matrices.items()
            if name in before & self._unreadable
        }

    @property
    def missing(self) -> set[str]:
        """Return the matrices that nobody can read."""
        return {name for name, entry in self.holdings.matrices.items() if entry.reason}

    def coverage(self, own: Coverage) -> Coverage:
        """Return the coverage of all ranks' models; before any table is known, rank 0's own."""
        return self.holdings.coverage if self._roster.known.tables else own

    def nominal(self, own: Mapping[str, float]) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix; before any table is known, of rank 0's own."""
        return {name: entry.seconds for name, entry in self.holdings.matrices.items()} or dict(own)

    def restart(self) -> None:
        """Start again from a checkpoint that all ranks load."""
        self._own.restart()
        self._norms.forget()
        self._asked = None
        self._faults.restart()

    def close(self) -> None:
        """Let the others fetch the last copies, and release the store."""
        self._own.close(self._limits.fragment_seconds)

    def _log_renamed(self) -> None:
        """Log once that one name stands for several weights."""
        several = sorted({name for names in self.holdings.names.values() for name in names.values()})
        if several and not self._has_renamed:
            self._has_renamed = True
            _log.info(
                "esdmon: ranks hold different weights under the same names; each is read as name@rank, after the first "
                "rank that holds it: %s.",
                ", ".join(several[:_MOST_NAMED]) + (" …" if len(several) > _MOST_NAMED else ""),
            )


def _completed(layer: LayerReport, assigned: Assigned) -> LayerReport:
    """Return another rank's reading with values that rank 0 has: the move of the matrix, and its last sampled step."""
    if layer.name in assigned.moved:
        layer = replace(layer, update_ratio=assigned.moved[layer.name]())
    sample = assigned.sampled.get(layer.name)
    if sample is None or math.isnan(sample.ratio):
        return layer
    return replace(layer, step_ratio=sample.ratio, step_growth=sample.growth)
