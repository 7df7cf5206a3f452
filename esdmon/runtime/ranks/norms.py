"""Compute norms between readings of matrices that rank 0 does not hold completely.

‖W‖_F² is the sum of the squares of all elements. So of a sharded matrix each rank sends the sum of its part, and rank 0
adds the sums up. A matrix that another rank holds completely is screened there, with its λmax.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import final
from zlib import crc32

from esdmon.records import Screened
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Holdings
from esdmon.runtime.ranks.messages import RankNorms
from esdmon.runtime.ranks.parts import ShardedSource, Squares
from esdmon.schedule.budget import Budget

_AWAITED_STEPS = 3  # due steps whose norms are waited for; our choice


@dataclass(frozen=True, slots=True)
class _Arriving:
    """Norms that may still be on their way from the device."""

    step: int
    parts: Mapping[str, str]
    """Names in the job of the sharded matrices, by this rank's own."""
    squares: Squares
    whole: Mapping[str, str]
    """Names in the job of the matrices that this rank holds completely, by its own."""
    seconds: float
    screened: dict[str, Screened] = field(default_factory=dict)
    """The norms of `whole` that have arrived, by this rank's own names."""


@final
class OwnNorms:
    """Compute the norms that rank 0 has planned for this rank, and send them once they arrive from the device.

    Args:
        source: the matrices of this rank's model.
        ranks: the messages of the job.
        budget: measures the cost.
    """

    def __init__(self, source: ShardedSource, ranks: Coordinator, budget: Budget) -> None:
        self._source = source
        self._ranks = ranks
        self._budget = budget
        self._arriving: deque[_Arriving] = deque(maxlen=_AWAITED_STEPS)

    def compute(self, step: int, parts: Mapping[str, str], whole: Mapping[str, str]) -> float:
        """Begin to compute the norms of matrices at a due step.

        Args:
            step: optimizer steps taken.
            parts: sharded matrices: their names in the job, by this rank's own.
            whole: the same for matrices that this rank holds completely.

        Returns:
            The seconds that this is expected to take on an accelerator.
        """
        with self._budget.measured() as cost:
            squares, beside = self._source.parts.squares(parts)
            here = filter(self._source.parts.has, whole)  # the model may have changed since the plan
            expected = {own: self._source.screen(own, step) for own in here}
        begun = {own: whole[own] for own, seconds in expected.items() if seconds is not None}
        beside += sum(seconds for seconds in expected.values() if seconds is not None)
        self._arriving.append(_Arriving(step, parts, squares, begun, cost.seconds + beside))
        self.send()
        return beside

    def send(self) -> None:
        """Send the norms that have arrived from the device, without waiting for the rest."""
        if any(each.whole for each in self._arriving):  # never on rank 0, which screens its own matrices itself
            self._sort(self._source.screened())
        while self._arriving:
            first = self._arriving[0]
            squares = first.squares()
            if squares is None or len(first.screened) < len(first.whole):
                return
            self._arriving.popleft()
            whole = tuple(replace(each, name=first.whole[own]) for own, each in first.screened.items())
            sums = {first.parts[own]: square for own, square in squares.items()}
            self._ranks.give_norms(first.step, RankNorms(first.seconds, sums, whole))

    def _sort(self, found: Iterable[Screened]) -> None:
        """Record norms that have arrived with the due step at which they were computed."""
        for each in found:
            for arriving in self._arriving:
                if arriving.step == each.step and each.name in arriving.whole:
                    arriving.screened[each.name] = each

    def forget(self) -> None:
        """Discard norms that have not arrived, since the weights have changed."""
        self._arriving.clear()


@dataclass(frozen=True, slots=True)
class JobScreening:
    """The norms of one due step."""

    step: int
    names: Collection[str]
    """All matrices whose norms were planned."""
    found: tuple[Screened, ...]
    """The norms of those that could be screened."""
    seconds: float
    """Seconds of the slowest rank, for which the others wait in the training's next collective."""
    own: float
    """Seconds of rank 0."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A matrix whose norm is computed at the next due step."""

    N: int
    ranks: frozenset[int]
    """Those that compute the norms of its parts, or the one that screens all of it."""
    is_whole: bool


@final
class JobNorms:
    """Plan on rank 0 which ranks compute norms, and add up those of parts.

    Args:
        ranks: the messages of the job.
    """

    def __init__(self, ranks: Coordinator) -> None:
        self._ranks = ranks
        self._planned: dict[str, _Planned] = {}
        self._expected: deque[tuple[int, dict[str, _Planned]]] = deque()

    def plan(self, names: Iterable[str], holdings: Holdings) -> tuple[tuple[str, str | int], ...]:
        """Return the matrices that are screened at the next due step, each with its parameter or its rank.

        Args:
            names: the matrices, by their names in the job.
            holdings: the tables of all ranks.
        """
        self._planned, planned = {}, []
        for name in names:
            where, ranks = _place(name, holdings)
            self._planned[name] = _Planned(holdings.matrices[name].side, ranks, isinstance(where, int))
            planned.append((name, where))
        return tuple(planned)

    def begin(self, step: int) -> Collection[str]:
        """Begin to expect the planned norms at a due step, and return the matrices."""
        planned, self._planned = self._planned, {}
        if planned:
            self._expected.append((step, planned))
        while len(self._expected) > _AWAITED_STEPS:
            self._ranks.give_up_norms(*_awaited(*self._expected.popleft()))
        return planned

    def take(self) -> list[JobScreening]:
        """Return the norms of due steps for which all ranks have sent theirs."""
        found: list[JobScreening] = []
        for step, planned in tuple(self._expected):
            sent = self._ranks.take_norms(*_awaited(step, planned))
            if sent is not None:
                self._expected.remove((step, planned))
                slowest = max(norms.seconds for norms in sent.values())
                own = sent[0].seconds if 0 in sent else 0.0
                found.append(JobScreening(step, planned.keys(), tuple(_joined(step, planned, sent)), slowest, own))
        return found

    def forget(self) -> None:
        """Discard the planned and the expected norms."""
        self._planned = {}
        self._expected.clear()


def _awaited(step: int, planned: Mapping[str, _Planned]) -> tuple[int, list[int]]:
    """Return a due step and the ranks that send norms for it."""
    return step, sorted(frozenset[int]().union(*(each.ranks for each in planned.values())))


def _place(name: str, holdings: Holdings) -> tuple[str | int, frozenset[int]]:
    """Return the sharded parameter of a matrix, or the rank that screens all of it, and the ranks that take part.

    Replicas are spread over their ranks. A matrix stays on its rank, which keeps a vector for the next screening.
    """
    entry = holdings.matrices[name]
    if entry.parameters:
        (parameter,) = entry.parameters
        return parameter, frozenset(holder.rank for holder in holdings.holders[parameter])
    rank = entry.readers[crc32(name.encode()) % len(entry.readers)]
    return rank, frozenset({rank})


def _joined(step: int, planned: Mapping[str, _Planned], sent: Mapping[int, RankNorms]) -> Iterable[Screened]:
    """Yield the norms of the matrices for which every rank has sent its part, or the rank that holds it all of them."""
    for norms in sent.values():
        yield from norms.whole
    for name, each in planned.items():
        own = [sent[rank].squares.get(name) for rank in each.ranks]
        if not each.is_whole and None not in own:
            norm = math.sqrt(sum(square for square in own if square is not None))
            yield Screened(name, step, norm, math.nan, math.nan, N=each.N)
