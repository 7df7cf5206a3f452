"""Define `Sharing`, which distributes matrices over the ranks of a job so that all finish at about the same time.

At the same cost to the run, a rank with idle cores reads many times as much as a rank without, so it gets
proportionally more matrices.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from esdmon.runtime.ranks.holdings import Entry, Holdings, Table
from esdmon.runtime.ranks.messages import Assignment
from esdmon.schedule.budget import Budget
from esdmon.schedule.loads import Loads

_ITEM = 4  # assumed bytes of an element of a whole matrix: float64 weights are rare


@dataclass(frozen=True, slots=True)
class Reads:
    """The reading capacity of a rank."""

    pace: float
    """Seconds of reading per second of its budget."""
    credit: float
    """Seconds of reading that the rank may begin."""
    copies: bool = True
    """True if the rank copies the weights that it reads, and so needs memory for the copies."""


@final
class Capacities:
    """The reading capacities of all ranks; rank 0 keeps the budget of each rank, since it plans for all.

    Args:
        budget: of rank 0.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._tables: Mapping[int, Table] = {}
        self._paces: dict[int, float] = {}
        self._credits: dict[int, float] = {}

    def keep(self, tables: Mapping[int, Table]) -> None:
        """Replace the ranks that read."""
        self._tables = tables

    def pace(self, rank: int) -> float:
        """Return the pace that a rank has sent; before its first answer, the pace of rank 0."""
        if not rank:
            return self._budget.pace
        has_threads = rank in self._tables and self._tables[rank].pauses
        return self._paces.get(rank, self._budget.pace) if has_threads else 1.0

    def earn(self, seconds: float, at_most: float) -> None:
        """Add credit for each of the other ranks, as `Budget.earn` does for rank 0."""
        for rank in self._tables.keys() - {0}:
            credit = self._credits.get(rank, 0.0) + seconds
            self._credits[rank] = self._budget.limited(credit, at_most / self.pace(rank))

    def answered(self, paces: Mapping[int, float], seconds: Mapping[int, float]) -> None:
        """Record the paces of ranks, and the seconds that their readings have taken."""
        self._paces |= paces
        for rank, taken in seconds.items():
            self._credits[rank] = self._credits.get(rank, 0.0) - taken / self.pace(rank)

    def reads(self, under_way: Mapping[int, float], *, ahead: float) -> dict[int, Reads]:
        """Return the current reading capacity of each rank.

        Args:
            under_way: expected seconds of unfinished readings, by rank.
            ahead: seconds of credit that each rank will have earned.
        """
        reads = {}
        for rank in self._tables.keys() | {0}:
            own = self._credits.get(rank, 0.0) if rank else None
            credit = self._budget.credit_at(self.pace(rank), ahead=ahead, credit=own) - under_way.get(rank, 0.0)
            copies = rank in self._tables and self._tables[rank].copies
            reads[rank] = Reads(self.pace(rank), credit, copies=copies)
        return reads


@final
class Sharing:
    """Distribute readings over the ranks.

    Args:
        most_bytes: largest size of the copies that wait on a rank.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._loads = Loads()

    def keep(self, ranks: Iterable[int]) -> None:
        """Replace the ranks."""
        self._loads.keep(ranks)

    def share(
        self, names: Mapping[str, float], holdings: Holdings, ranks: Mapping[int, Reads]
    ) -> tuple[Assignment, ...]:
        """Return the assignments of matrices to ranks.

        Args:
            names: matrices in order of priority, with the expected seconds of a reading. Matrices without memory for
                copies, and matrices that only ranks without credit can read, are omitted. If that leaves none, the
                first one is read.
            holdings: the tables of all ranks, joined.
            ranks: reading capacity of each rank.
        """
        groups = within(_grouped(names, holdings), holdings, self._most_bytes)
        # Estimated instead of measured seconds: a rank whose readings fail at once would otherwise get all of them.
        cost = {group: sum(holdings.matrices[name].seconds for name in group) for group in groups}
        self._loads.paces = {rank: reads.pace for rank, reads in ranks.items()}
        self._loads.limit(max(cost.values(), default=0.0))
        left = {rank: reads.credit for rank, reads in ranks.items()}
        copied: dict[int, int] = defaultdict(int)
        shared = []
        for group in sorted(groups, key=lambda group: (-cost[group], group)):
            entry = holdings.matrices[group[0]]
            size = 0 if entry.parameters else _ITEM * entry.size
            able = [
                rank
                for rank in entry.readers
                if left[rank] > 0 and (not copied[rank] or copied[rank] + size <= self._most_bytes)
            ]
            if able:
                assignment = self._assign(group, cost[group], able, holdings)
                left[assignment.owner] -= sum(names[name] for name in group)
                copied[assignment.owner] += size * ranks[assignment.owner].copies
                shared.append(assignment)
        if groups and not shared:
            first, readers = groups[0], holdings.matrices[groups[0][0]].readers
            shared.append(self._assign(first, cost[first], readers, holdings))
        return tuple(shared)

    def _assign(self, group: tuple[str, ...], cost: float, able: Sequence[int], holdings: Holdings) -> Assignment:
        """Assign the matrices of a group to one of the ranks that can read them."""
        entry = holdings.matrices[group[0]]
        owner = self._loads.give(cost, able, _held(entry, holdings))
        return Assignment(owner, group, entry.parameters)


def within(groups: Sequence[tuple[str, ...]], holdings: Holdings, most: int) -> list[tuple[str, ...]]:
    """Return the groups of matrices whose fragments fit into the memory of every rank; the first in any case."""
    used: dict[int, int] = defaultdict(int)
    chosen: list[tuple[str, ...]] = []
    for group in groups:
        need: dict[int, int] = defaultdict(int)
        for name in holdings.matrices[group[0]].parameters:
            item = holdings.bytes_of[name] // max(1, sum(each.fragment.n_elements for each in holdings.holders[name]))
            for holder in holdings.holders[name]:
                need[holder.rank] += item * holder.fragment.n_elements
        if chosen and any(used[rank] + count > most for rank, count in need.items()):
            continue
        chosen.append(group)
        for rank, count in need.items():
            used[rank] += count
    return chosen


def _grouped(names: Iterable[str], holdings: Holdings) -> list[tuple[str, ...]]:
    """Return groups of matrices that are parts of the same parameters, so that these are sent only once."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in names:
        groups[holdings.matrices[name].parameters or name].append(name)
    return [tuple(group) for group in groups.values()]


def _held(entry: Entry, holdings: Holdings) -> dict[int, int]:
    """Return the number of elements that each rank holds of the parameters behind a matrix."""
    held: dict[int, int] = defaultdict(int)
    for name in entry.parameters:
        for holder in holdings.holders[name]:
            for rank in (holder.rank, *holder.replicas):
                held[rank] += holder.fragment.n_elements
    return held
