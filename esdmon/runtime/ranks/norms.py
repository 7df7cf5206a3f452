"""Compute ‖W‖_F of sharded weights between readings: each rank computes its parts' norms, and rank 0 adds them up.

‖W‖_F² is the sum of the squares of all elements, so each rank sends one number per weight, and no elements.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import final

from esdmon.records import Screened
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Holdings
from esdmon.runtime.ranks.parts import Parts, Squares

_KEPT = 3  # due steps whose norms are waited for; our choice


@final
class FragmentNorms:
    """Compute the norms of this rank's parts of matrices, and send them to rank 0 once they arrive from the device.

    Args:
        parts: the parts of weights on this rank.
        ranks: the messages of the job.
    """

    def __init__(self, parts: Parts, ranks: Coordinator) -> None:
        self._parts = parts
        self._ranks = ranks
        self._arriving: deque[tuple[int, Mapping[str, str], Squares]] = deque()

    def compute(self, step: int, matrices: Mapping[str, str]) -> float:
        """Begin to compute the norms of this rank's parts of matrices at a due step.

        Args:
            step: optimizer steps taken.
            matrices: names in the job, by this rank's own.

        Returns:
            The seconds that this is expected to take on an accelerator.
        """
        squares, beside = self._parts.squares(matrices)
        self._arriving.append((step, matrices, squares))
        self.send()
        return beside

    def send(self) -> None:
        """Send the sums that have arrived from the device, without waiting for the rest."""
        while self._arriving:
            step, matrices, squares = self._arriving[0]
            arrived = squares()
            if arrived is None:
                return
            self._arriving.popleft()
            self._ranks.give_squares(step, {matrices[name]: square for name, square in arrived.items()})

    def forget(self) -> None:
        """Discard sums that have not arrived, since the weights have changed."""
        self._arriving.clear()


@dataclass(frozen=True, slots=True)
class _Planned:
    """A matrix whose norm is computed at the next due step."""

    N: int
    ranks: frozenset[int]
    """Those that hold the fragments of its parameter."""


@final
class JobNorms:
    """Add up the norms of the ranks' parts to the norms of matrices, on rank 0.

    Args:
        ranks: the messages of the job.
    """

    def __init__(self, ranks: Coordinator) -> None:
        self._ranks = ranks
        self._planned: dict[str, _Planned] = {}
        self._expected: deque[tuple[int, dict[str, _Planned]]] = deque()

    def plan(self, sides: Mapping[str, int], holdings: Holdings) -> tuple[tuple[str, str], ...]:
        """Return the matrices whose parts all ranks screen at the next due step, each with its parameter.

        Args:
            sides: the longer sides of the matrices, by their names in the job.
            holdings: the tables of all ranks.
        """
        self._planned, planned = {}, []
        for name, side in sides.items():
            (parameter,) = holdings.matrices[name].parameters
            ranks = frozenset(holder.rank for holder in holdings.holders[parameter])
            self._planned[name] = _Planned(side, ranks)
            planned.append((name, parameter))
        return tuple(planned)

    def begin(self, step: int) -> Collection[str]:
        """Begin to expect the planned sums at a due step, and return the matrices."""
        planned, self._planned = self._planned, {}
        if planned:
            self._expected.append((step, planned))
        while len(self._expected) > _KEPT:
            self._expected.popleft()
        return planned

    def take(self) -> list[Screened]:
        """Return the norms of due steps for which all ranks have sent their sums."""
        found: list[Screened] = []
        for step, planned in tuple(self._expected):
            ranks = frozenset[int]().union(*(each.ranks for each in planned.values()))
            squares = self._ranks.take_squares(step, sorted(ranks))
            if squares is not None:
                self._expected.remove((step, planned))
                found += _joined(step, planned, dict(zip(sorted(ranks), squares, strict=True)))
        return found

    def forget(self) -> None:
        """Discard the planned and the expected norms."""
        self._planned = {}
        self._expected.clear()


def _joined(
    step: int, planned: Mapping[str, _Planned], squares: Mapping[int, Mapping[str, float]]
) -> Iterable[Screened]:
    """Yield the norms of the matrices for which every rank has sent the squares of its part."""
    for name, each in planned.items():
        own = [squares[rank].get(name) for rank in each.ranks]
        if None not in own:
            norm = math.sqrt(sum(square for square in own if square is not None))
            yield Screened(name, step, norm, math.nan, math.nan, N=each.N)
