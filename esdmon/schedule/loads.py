"""Distribute readings over the ranks of a job: assign each to the rank with the smallest load."""

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
        """Seconds of reading per second of budget, by rank; 1 if not known."""

    def keep(self, ranks: Iterable[int]) -> None:
        """Replace the ranks; a new rank gets the smallest load of the previous ones."""
        least = min(self._loads.values(), default=0.0)
        self._loads = {rank: self._loads.get(rank, least) for rank in ranks}

    def limit(self, seconds: float) -> None:
        """Limit the load of each rank to the smallest load plus one reading of this many seconds at its current pace.

        Otherwise readings that a rank got while it was slower would count for ever.
        """
        least = min(self._loads.values(), default=0.0)
        for rank, load in self._loads.items():
            self._loads[rank] = min(load, least + seconds / self.paces.get(rank, 1.0))

    def give(self, seconds: float, ranks: Iterable[int], held: Mapping[int, int] | None = None) -> int:
        """Assign a reading to the rank with the smallest load, among equal ones to the largest holder; return the rank.

        Args:
            seconds: expected seconds of the reading.
            ranks: ranks that can read the matrix.
            held: size of the part that each rank holds; empty if it is the same for all.
        """
        held = held or {}
        rank = min(ranks, key=lambda rank: (self._loads[rank], -held.get(rank, 0), rank))
        self._loads[rank] += seconds / self.paces.get(rank, 1.0)
        return rank


def share_out(costs: Mapping[str, float], ranks: Iterable[int]) -> dict[int, list[str]]:
    """Return matrices by rank, of about equal cost: the costliest first, each for the rank with the smallest sum.

    >>> share_out({"a": 1.0, "b": 3.0, "c": 1.5}, [0, 1])
    {0: ['b'], 1: ['c', 'a']}
    """
    shares: dict[int, list[str]] = {rank: [] for rank in ranks}
    loads = Loads()
    loads.keep(shares)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        shares[loads.give(costs[name], shares)].append(name)
    return shares
