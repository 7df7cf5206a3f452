"""Set the number of threads that read, and their share of the time, from the measured slow-down of training steps.

Reading on idle cores slows the training's steps only by shared memory bandwidth, by the interpreter's lock, or if cores
were not idle after all. The slow-down δ is measured: blocks of steps in which threads read are compared with blocks in
which none did, see `esdmon.schedule.slow_down`. If δ is above the budget β by more than its error, the number of
threads is halved; if δ is below β by more than its error, it is doubled, or increased by one after it was once halved.
If the estimate of δ is above β, certain or not, threads read for only 0.8·β/δ of the time; a wrong estimate delays
readings, and stops none. At least one thread is left, unless δ is above 4β by more than its error.

The ranks of a job wait for each other in each step, so each rank is slowed by the readings of all. Here the threads of
all ranks pause in the same blocks: as many blocks as the longest reading takes to end, as announced by rank 0, and one
more, which is compared. So δ is the cost of the readings of all ranks. If it is too high, each rank halves its number
of threads, down to none. All ranks count the same steps, also ranks without an idle core: their one thread pauses too.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from esdmon.schedule.slow_down import Comparison, SlowDown

_BLOCK = 20  # steps; this and what follows is our choice
_CONTROL_EVERY = 4  # at least one block in so many is a control, in which threads pause
MOST_ENDING = 8
"""Blocks at most in which the readings of a job end before one is measured: longer readings are not. Our choice."""
_RETRY = 50  # blocks at least until reading beside the training is tried again, where it had cost too much
_RECENT = 60  # blocks in which threads have read, at most, whose loss the run earns before
_MOST_RETRY = 800  # the same at most: the pause doubles each time
_AIM = 0.8  # of the budget, where steps are slower than it allows: an estimate is too low as often as too high
_LONG = 5  # times the median step of a block: a longer step contains a pause of the host, such as a validation,
_LONGEST = 0.1  # if it also takes more seconds than this; a step that waits for the interpreter's lock may take fewer
_MUCH = 4  # times the budget, from which no thread is left


def blocks_to_end(seconds: float, step_seconds: float) -> int:
    """Return in how many blocks of steps a reading of so many seconds ends, 1 to `MOST_ENDING`."""
    return max(1, min(MOST_ENDING, math.ceil(seconds / (_BLOCK * step_seconds)))) if step_seconds > 0 else 1


def steps_paused(ending: int) -> int:
    """Return how many steps a thread may pause where readings end in so many blocks; 0 where none ever does."""
    return _BLOCK * (ending + 2) if ending else 0


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    is_busy: bool


def _without_pauses(steps: Sequence[_Step]) -> list[_Step]:
    """Return the steps of a block except for those during which the host did something else."""
    longest = max(_LONGEST, _LONG * statistics.median(step.seconds for step in steps))
    return [step for step in steps if step.seconds <= longest]


@final
class Workers:
    """Count steps, and set how many threads may read beside them.

    Args:
        share: by which steps may be slower, the budget.
        most: returns the threads that idle cores allow now, 0 where none is idle, given how many cores have read.
        clock: seconds, without those that the monitor takes in the hook.
        with_ranks: whether other ranks read beside the same steps.
        is_known: returns whether idle cores have been counted.
    """

    def __init__(
        self,
        share: float,
        most: Callable[[float], int],
        *,
        clock: Callable[[], float],
        with_ranks: bool = False,
        is_known: Callable[[], bool] = lambda: True,
    ) -> None:
        self._share = share
        self._most = most
        self._with_ranks = with_ranks
        self._is_known = is_known
        self._clock = clock
        self._wanted = 1
        self._cap = most(0.0)
        self._comparison = Comparison()
        self._since: float | None = None
        self._steps: list[_Step] = []
        self._blocks = 0
        self._is_dropped = False
        self._lost = 0.0
        """Share of a block that is lost, as last known."""
        self._blocks_until_retry = 0
        self._pause = _RETRY
        self._read = 0.0
        """Blocks in which threads have read lately, since their number was set."""
        self._has_failed = False
        """Whether more threads than now have slowed the steps too much."""
        self._without_control = 0
        """Blocks since the last in which no thread read."""
        self._owed = 0.0
        """Blocks without a reading that are due, for those in which threads have read."""
        self.ending = 1
        """Blocks in which readings end before one is measured, where other ranks read too."""
        self.is_paused = False
        """True while no thread may begin to read, so that steps without it are measured."""

    @property
    def count(self) -> int:
        """Return how many threads may read on idle cores; 0 where none is idle, or reading slows the steps by much."""
        return min(self._wanted, self._cap)

    @property
    def rate(self) -> float:
        """Return the seconds that threads may read in a second of the run, for its steps to lose no more than `share`.

        It is their number, or less where steps are slower by more than the share while they read: then they read for a
        part of the time.
        """
        found = self.slow_down
        if found is None or found.share <= self._share:
            return self.count
        return self.count * _AIM * self._share / found.share

    @property
    def has_no_core(self) -> bool:
        """Return whether it is known that no thread may read on an idle core."""
        return not self.count and self._is_known()

    @property
    def slow_down(self) -> SlowDown | None:
        """Return by how much steps are slower while threads read; None where it is not known yet."""
        return self._comparison.slow_down

    def step(self, *, is_busy: bool) -> float:
        """Count a step of the training.

        Args:
            is_busy: whether a thread reads.

        Returns:
            The seconds that the steps of a block have lost to reading, where one has ended with this step; else 0.
        """
        before, self._since = self._since, self._clock()
        if before is None:
            return 0.0
        self._steps.append(_Step(self._since - before, is_busy))
        if len(self._steps) < _BLOCK:
            return 0.0
        busy = statistics.fmean(step.is_busy for step in self._steps)
        lost = 0.0 if self._is_dropped else self._compare(_without_pauses(self._steps))
        self._count_busy(busy)
        self._adjust()
        self._blocks += 1
        self._cap = self._most(self.count * busy)
        self._steps = []
        self._is_dropped = False
        if self._with_ranks:
            self.is_paused = self._place() >= _CONTROL_EVERY - 1
        else:
            self.is_paused = self.count > 0 and self._is_to_pause()
        return lost

    def wait(self) -> None:
        """Drop the block that is measured, and let threads begin: the training waits for readings."""
        self.is_paused = False
        self.drop()

    def drop(self) -> None:
        """Drop the block that is measured: a step of it took longer than others, for another reason than threads."""
        self._is_dropped = True

    def _place(self) -> int:
        """Return the place of this block in a job's cycle: some that read, some in which readings end, a control."""
        return self._blocks % (_CONTROL_EVERY + self.ending)

    def _compare(self, steps: Sequence["_Step"]) -> float:
        """Compare the steps of a block, and return the seconds that they have lost."""
        seconds = sum(step.seconds for step in steps)
        reading = statistics.fmean(step.is_busy for step in steps)
        if seconds <= 0:  # a clock that stands still
            return 0.0
        if self._is_compared(reading):
            self._comparison.add(seconds / len(steps), reading)
        if self.slow_down is not None:
            self._lost = max(0.0, self.slow_down.share)
        is_free = self.rate > self._share  # else threads are charged in full
        return self._lost * reading * seconds if is_free else 0.0

    def _is_compared(self, reading: float) -> bool:
        """Return whether a block counts: in a job those in which all ranks read, and those in which none does."""
        if not self._with_ranks:
            return True
        return reading == 1 if not self.is_paused else not reading and self._place() == _CONTROL_EVERY - 1 + self.ending

    @property
    def _each(self) -> float:
        """Return how many blocks without a reading follow each in which threads read."""
        return max(1 / (_CONTROL_EVERY - 1), self.count / self.rate - 1) if self.count else 0.0

    def _count_busy(self, busy: float) -> None:
        self._read = min(self._read + busy, _RECENT)
        self._owed = max(0.0, self._owed + busy * self._each - (1 - busy))
        self._without_control = self._without_control + 1 if busy else 0

    def _is_to_pause(self) -> bool:
        """Return whether threads pause in the next block: after a few in which they read, until none is owed."""
        if self.is_paused:
            return self._owed > 0.5 or self._without_control > 0
        return self._owed > (_CONTROL_EVERY - 1.5) * self._each or self._without_control >= 2 * _CONTROL_EVERY

    def _adjust(self) -> None:
        if not self._wanted:
            self._blocks_until_retry -= 1
            if self._blocks_until_retry <= 0:
                self._want(1)
            return
        found = self.slow_down
        if found is None:
            return
        if found.low > self._share:
            self._has_failed = True
            is_much = found.low > _MUCH * self._share
            # Alone, one thread is left, which reads for a part of the time. In a job it is one of many.
            fewest = 0 if is_much or self._with_ranks else 1
            fewer = fewest if is_much else max(fewest, self._wanted // 2)
            if not fewer:  # until the run has earned what it has lost
                lost = math.ceil(self._read * found.share / self._share)
                self._blocks_until_retry = min(max(self._pause, lost), _MOST_RETRY)
                self._pause = min(2 * self._pause, _MOST_RETRY)
            if fewer < self._wanted:
                self._want(fewer)
        elif found.high < self._share:
            self._pause = _RETRY
            if self._wanted < self._cap:
                self._want(self._wanted + 1 if self._has_failed else 2 * self._wanted)

    def _want(self, count: int) -> None:
        """Set the number of threads, and drop measurements with another number."""
        self._wanted = count
        self._read = 0.0
        self._comparison.forget()
