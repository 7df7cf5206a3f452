"""`Sharing`: which rank of a job reads which of some matrices, so that all are done at about the same time.

A rank whose threads read on idle cores reads many times as much for the same loss of the run as one that has none, and
is given as much more.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from esdmon.runtime.coordination import Job
from esdmon.runtime.holdings import Entry, Holdings
from esdmon.schedule.loads import Loads

_ITEM = 4  # bytes of an element of a whole matrix, at most: in a training few have float64 weights


@final
class Sharing:
    """Share readings out among ranks.

    Args:
        most_bytes: of copies that wait on a rank.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._loads = Loads()

    def keep(self, ranks: Iterable[int]) -> None:
        """Replace the ranks."""
        self._loads.keep(ranks)

    def share(self, names: Sequence[str], holdings: Holdings, paces: Mapping[int, float]) -> tuple[Job, ...]:
        """Return who reads what.

        Args:
            names: matrices in order of priority; what does not fit into the memory for copies is left out.
            holdings: what all ranks hold.
            paces: seconds of reading by rank for each second of its budget.
        """
        jobs = within(_grouped(names, holdings), holdings, self._most_bytes)
        self._loads.paces = paces
        # Estimated, not measured: a rank whose readings fail at once would be given all of them.
        cost = {job: sum(holdings.matrices[name].seconds for name in job) for job in jobs}
        copied: dict[int, int] = defaultdict(int)
        shared = []
        for job in sorted(jobs, key=lambda job: (-cost[job], job)):
            entry = holdings.matrices[job[0]]
            size = 0 if entry.parameters else _ITEM * entry.size
            ranks = [rank for rank in entry.readers if self._has_room(rank, copied[rank], size)]
            if ranks:
                owner = self._loads.give(cost[job], ranks, _held(entry, holdings))
                copied[owner] += size
                shared.append(Job(owner, job, entry.parameters))
        return tuple(shared)

    def _has_room(self, rank: int, copied: int, size: int) -> bool:
        """Return whether a rank that reads beside its training has memory for another copy."""
        return self._loads.paces.get(rank, 1.0) == 1 or not copied or copied + size <= self._most_bytes


def within(jobs: Sequence[tuple[str, ...]], holdings: Holdings, most: int) -> list[tuple[str, ...]]:
    """Return the jobs whose fragments fit into the memory of every rank; the first in any case."""
    used: dict[int, int] = defaultdict(int)
    chosen: list[tuple[str, ...]] = []
    for job in jobs:
        need: dict[int, int] = defaultdict(int)
        for name in holdings.matrices[job[0]].parameters:
            item = holdings.bytes_of[name] // max(1, sum(each.fragment.n_elements for each in holdings.holders[name]))
            for holder in holdings.holders[name]:
                need[holder.rank] += item * holder.fragment.n_elements
        if chosen and any(used[rank] + count > most for rank, count in need.items()):
            continue
        chosen.append(job)
        for rank, count in need.items():
            used[rank] += count
    return chosen


def _grouped(names: Sequence[str], holdings: Holdings) -> list[tuple[str, ...]]:
    """Return matrices that are parts of the same parameters together: these travel once."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in names:
        groups[holdings.matrices[name].parameters or name].append(name)
    return [tuple(group) for group in groups.values()]


def _held(entry: Entry, holdings: Holdings) -> dict[int, int]:
    """Return how many elements each rank holds of what is put together for a matrix."""
    held: dict[int, int] = defaultdict(int)
    for name in entry.parameters:
        for holder in holdings.holders[name]:
            held[holder.rank] += holder.fragment.n_elements
    return held
