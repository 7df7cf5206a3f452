"""Distribute readings over the ranks of a job: the next one goes to the rank with the smallest load."""

from collections.abc import Iterable, Mapping
from typing import final


@final
class Loads:
    """The time that each rank needs for its assigned readings, and the pace of each rank.

    >>> loads = Loads()
    >>> loads.keep([0, 1])
    >>> loads.paces = {1: 3.0}
    >>> [loads.give(1.0, [0, 1]) for _ in range(8)]
    [0, 1, 1, 1, 0, 1, 1, 1]
    """

    def __init__(self) -> None:
        self._loads: dict[int, float] = {}
        self.paces: Mapping[int, float] = {}
        """Seconds of reading by rank for each second of its budget; 1 where that is not known."""

    def keep(self, ranks: Iterable[int]) -> None:
        """Replace the ranks; a new one counts as loaded as the least loaded of those before."""
        least = min(self._loads.values(), default=0.0)
        self._loads = {rank: self._loads.get(rank, least) for rank in ranks}

    def limit(self, seconds: float) -> None:
        """Let no rank be ahead of the least loaded one by more than a reading of so many seconds at its present pace.

        What a rank was given while it read more slowly would count for ever.
        """
        least = min(self._loads.values(), default=0.0)
        for rank, load in self._loads.items():
            self._loads[rank] = min(load, least + seconds / self.paces.get(rank, 1.0))

    def give(self, seconds: float, ranks: Iterable[int], held: Mapping[int, int] | None = None) -> int:
        """Give a reading to the rank with the least load, of several to the one that holds most of it; return it.

        Args:
            seconds: that it is expected to take.
            ranks: those that can read it.
            held: how much of it each of them holds; none where that is the same for all.
        """
        held = held or {}
        rank = min(ranks, key=lambda rank: (self._loads[rank], -held.get(rank, 0), rank))
        self._loads[rank] += seconds / self.paces.get(rank, 1.0)
        return rank


def share_out(costs: Mapping[str, float], ranks: Iterable[int]) -> dict[int, list[str]]:
    """Return matrices by rank, of about equal cost: the costliest first, each to the rank with the least so far.

    >>> share_out({"a": 1.0, "b": 3.0, "c": 1.5}, [0, 1])
    {0: ['b'], 1: ['c', 'a']}
    """
    shares: dict[int, list[str]] = {rank: [] for rank in ranks}
    loads = Loads()
    loads.keep(shares)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        shares[loads.give(costs[name], shares)].append(name)
    return shares
