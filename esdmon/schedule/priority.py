"""Whose turn it is: which matrices are read at a due step, so that what is known of each goes stale evenly.

A matrix that moves at a rate d (‖ΔW‖/‖W‖ a step) and is read every T steps is d·T/2 out of date on average, and costs
c/T. The sum of the first is least, for a given sum of the second, where d·T²/c is the same for all (Lagrange); so the
one is read whose drift · age / cost is largest. It grows with age as long as a matrix moves at all, and there is a
longest wait besides: none starves.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import final

TOLERANCE = 1e-3
"""‖ΔW‖/‖W‖ up to which a matrix counts as unchanged. On 24 layers in training no alpha that means something moved by
more than a hundredth of its standard error meanwhile: tests/benchmarks/skipped.py."""
REFRESH = 10
"""Due steps after which an unchanged matrix is read all the same, where credit is left: a sample can miss a change in
a few rows. Our choice."""

LONGEST = 10
"""Times the due steps that it would wait if all took turns, after which a changed matrix comes before the others: what
costs ten thousand times as much as its neighbours would wait a hundred times as long. Our choice."""


@dataclass(slots=True)
class _Turn:
    nominal: float
    seconds: float = math.nan
    """Of a reading, as last measured."""
    read: int | None = None
    """Step of the last reading."""
    looked: int = -1
    drift: float = math.inf
    """Since the last reading, as last looked at."""
    trainable: bool = True
    passed: int = 0
    """Due steps since the last reading."""
    readable: bool = True
    """Whether the last reading gave numbers."""

    def importance(self, step: int, cost: float) -> float:
        drift = self.drift if self.drift <= 1 else 1.0  # also for NaN
        return drift * (step - (self.read or 0)) / cost


@final
class ReadPriority:
    """What is known of each matrix: what a reading costs, when it was read, how far it has moved since.

    Args:
        nominal: seconds of a reading by matrix, up to a factor that is measured.
        limited: whether there is a budget. Without one all are read but the frozen that have not moved.
    """

    def __init__(self, nominal: Mapping[str, float], *, limited: bool = True) -> None:
        self._turns = {name: _Turn(seconds) for name, seconds in nominal.items()}
        self._limited = limited
        self._measured = [0.0, 0.0]
        """Seconds, and nominal seconds, of those whose reading was measured: how fast this machine is."""

    def replace(self, nominal: Mapping[str, float]) -> None:
        """The matrices are these now; what is known of those that stay is kept."""
        self._turns = {name: self._turns.get(name) or _Turn(seconds) for name, seconds in nominal.items()}
        known = [turn for turn in self._turns.values() if not math.isnan(turn.seconds)]
        self._measured = [sum(turn.seconds for turn in known), sum(turn.nominal for turn in known)]

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices, in the model's order."""
        return tuple(self._turns)

    @property
    def sweep(self) -> float:
        """Seconds that reading all would take."""
        return sum(map(self.expected, self._turns))

    def expected(self, name: str) -> float:
        """Seconds that a reading is going to take; 0 for a matrix that is gone."""
        turn = self._turns.get(name)
        if turn is None:
            return 0.0
        if not math.isnan(turn.seconds):
            return turn.seconds
        seconds, nominal = self._measured
        return turn.nominal * (seconds / nominal if nominal else 1.0)

    def to_look_at(self) -> list[str]:
        """Those whose drift is worth a look, the longest not looked at first."""
        known = [name for name, turn in self._turns.items() if turn.read is not None]
        return sorted(known, key=lambda name: self._turns[name].looked)

    def looked(self, name: str, step: int, drift: float, *, trainable: bool) -> None:
        """Take how far a matrix has moved since its last reading; NaN where that cannot be told."""
        turn = self._turns[name]
        turn.looked, turn.drift, turn.trainable = step, drift, trainable

    def begun(self, name: str, step: int) -> None:
        """Take that a matrix is read as it is at this step."""
        turn = self._turns[name]
        turn.read, turn.drift, turn.looked, turn.passed = step, 0.0, step, 0

    def took(self, name: str, seconds: float, *, readable: bool = True) -> None:
        """Take what its reading took, and whether it gave numbers."""
        turn = self._turns.get(name)
        if turn is None:
            return
        if math.isnan(turn.seconds):
            self._measured[0] += seconds
            self._measured[1] += turn.nominal
        else:
            self._measured[0] += seconds - turn.seconds
        turn.seconds, turn.readable = seconds, readable

    def lost(self, name: str) -> None:
        """A reading that was begun came to nothing: it is as if there had been none."""
        if name in self._turns:
            self._turns[name].read = None

    def drift(self, name: str) -> float:
        """How far it has moved since its last reading, as last looked at; NaN where it was not."""
        turn = self._turns[name]
        return turn.drift if turn.read is not None and turn.looked > turn.read else math.nan

    def is_trainable(self, name: str) -> bool:
        """Whether it required a gradient when it was looked at last."""
        return self._turns[name].trainable

    def choose(self, step: int, credit: float, *, without: Collection[str] = (), forced: bool = True) -> list[str]:
        """The matrices to read, the most important first, as far as the credit goes.

        Args:
            step: now.
            credit: seconds that may be spent.
            without: matrices that are not to be chosen again.
            forced: take one that has changed even where there is no credit for it.
        """
        costs = {name: self.expected(name) for name in self._turns if name not in without}
        chosen: list[str] = []
        for name in sorted(costs, key=lambda name: self._order(name, step, costs[name])):
            turn = self._turns[name]
            if self._has_changed(turn):
                # What does not fit now is saved for: what comes after it would take its credit again and again.
                if costs[name] > credit and not (forced and not chosen):
                    break
            elif not (self._limited and turn.passed >= REFRESH and costs[name] <= credit):
                continue
            chosen.append(name)
            credit -= costs[name]
        return chosen

    def pass_by(self) -> None:
        """A due step is over."""
        for turn in self._turns.values():
            turn.passed += 1

    def _order(self, name: str, step: int, cost: float) -> tuple[int, float]:
        turn = self._turns[name]
        if turn.read is None:
            return 0, cost
        if not self._has_changed(turn):
            return 3, turn.read
        if turn.passed > LONGEST * len(self._turns):
            return 1, -turn.passed
        return 2, -turn.importance(step, cost)

    def _has_changed(self, turn: _Turn) -> bool:
        if turn.read is None or turn.drift > TOLERANCE or (math.isnan(turn.drift) and turn.readable):
            return True
        return not self._limited and (turn.trainable or turn.drift > 0)


def share_out(costs: Mapping[str, float], ranks: Iterable[int]) -> dict[int, list[str]]:
    """The costliest first, each to the rank that has the least to do so far.

    >>> share_out({"a": 1.0, "b": 3.0, "c": 1.5}, [0, 1])
    {0: ['b'], 1: ['c', 'a']}
    """
    shares: dict[int, list[str]] = {rank: [] for rank in ranks}
    load = dict.fromkeys(shares, 0.0)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = min(load, key=lambda rank: (load[rank], rank))
        shares[rank].append(name)
        load[rank] += costs[name]
    return shares
