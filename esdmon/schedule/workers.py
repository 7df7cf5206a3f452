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
"""Largest number of blocks in which the readings of a job end before a block is measured; with longer readings nothing
is measured. Our choice."""
_RETRY = 50  # smallest number of blocks until reading beside the training is tried again after it was too slow
_RECENT = 60  # largest number of blocks with readings whose loss the run earns back first
_MOST_RETRY = 800  # largest such number: the pause doubles each time
_AIM = 0.8  # of the budget, if steps are slower than it allows: estimates are too low as often as too high
_LONG = 5  # times the median step of a block: a longer step contains a pause of the host, such as a validation,
_LONGEST = 0.1  # if it also takes more seconds than this; a step that waits for the interpreter's lock may take fewer
_MUCH = 4  # times the budget: above this slow-down no thread is left


def blocks_to_end(seconds: float, step_seconds: float) -> int:
    """Return the number of blocks of steps in which a reading of this many seconds ends, 1 to `MOST_ENDING`."""
    return max(1, min(MOST_ENDING, math.ceil(seconds / (_BLOCK * step_seconds)))) if step_seconds > 0 else 1


def steps_paused(ending: int) -> int:
    """Return how many steps a thread may pause if readings end in this many blocks; 0 if threads never pause."""
    return _BLOCK * (ending + 2) if ending else 0


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    is_busy: bool


def _without_pauses(steps: Sequence[_Step]) -> list[_Step]:
    """Return the steps of a block without those in which the host did something else."""
    longest = max(_LONGEST, _LONG * statistics.median(step.seconds for step in steps))
    return [step for step in steps if step.seconds <= longest]


@final
class Workers:
    """The number of threads that may read beside the training, set from the measured slow-down of its steps.

    Args:
        share: largest relative slow-down of steps, the budget.
        most: returns the number of threads for the idle cores now, given the number of cores that have read; may be 0.
        clock: returns seconds, without the monitor's time in the hook.
        with_ranks: whether other ranks read during the same steps.
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
        """Last known share of a block's time that is lost."""
        self._blocks_until_retry = 0
        self._pause = _RETRY
        self._read = 0.0
        """Recent blocks in which threads have read, since their number was set."""
        self._has_failed = False
        """True if more threads than now have slowed the steps too much."""
        self._without_control = 0
        """Blocks since the last in which no thread read."""
        self._owed = 0.0
        """Number of blocks without readings that are due after blocks with readings."""
        self.ending = 1
        """Number of blocks in which readings end before a block is measured, if other ranks read too."""
        self.is_paused = False
        """True while no thread may begin to read, so that steps without it are measured."""

    @property
    def count(self) -> int:
        """Return how many threads may read on idle cores; 0 if no core is idle, or if reading slows the steps much."""
        return min(self._wanted, self._cap)

    @property
    def rate(self) -> float:
        """Return the seconds that threads may read per second of the run, so that its steps lose at most `share`.

        It is the number of threads, or less if the slow-down exceeds the share: then threads read for a part of the
        time.
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
        """Return the relative slow-down of steps while threads read; None if it is not known yet."""
        return self._comparison.slow_down

    def step(self, *, is_busy: bool) -> float:
        """Count a step of the training.

        Args:
            is_busy: whether a thread reads.

        Returns:
            The seconds that readings have cost the steps of a block, if a block has ended with this step; else 0.
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
        """Drop the current block, and let threads begin, since the training waits for readings."""
        self.is_paused = False
        self.drop()

    def drop(self) -> None:
        """Drop the current block, in which a step took longer for another reason than reading threads."""
        self._is_dropped = True

    def _place(self) -> int:
        """Return the position of this block in a job's cycle: with readings, with ending readings, or a control."""
        return self._blocks % (_CONTROL_EVERY + self.ending)

    def _compare(self, steps: Sequence["_Step"]) -> float:
        """Compare the steps of a block, and return the seconds that they have lost."""
        seconds = sum(step.seconds for step in steps)
        reading = statistics.fmean(step.is_busy for step in steps)
        if seconds <= 0:  # the clock has not advanced
            return 0.0
        if self._is_compared(reading):
            self._comparison.add(seconds / len(steps), reading)
        if self.slow_down is not None:
            self._lost = max(0.0, self.slow_down.share)
        is_free = self.rate > self._share  # else threads are charged in full
        return self._lost * reading * seconds if is_free else 0.0

    def _is_compared(self, reading: float) -> bool:
        """Return whether a block is compared; in a job only if all ranks read in it, or none."""
        if not self._with_ranks:
            return True
        return reading == 1 if not self.is_paused else not reading and self._place() == _CONTROL_EVERY - 1 + self.ending

    @property
    def _each(self) -> float:
        """Return the number of blocks without readings after each block with readings."""
        return max(1 / (_CONTROL_EVERY - 1), self.count / self.rate - 1) if self.count else 0.0

    def _count_busy(self, busy: float) -> None:
        self._read = min(self._read + busy, _RECENT)
        self._owed = max(0.0, self._owed + busy * self._each - (1 - busy))
        self._without_control = self._without_control + 1 if busy else 0

    def _is_to_pause(self) -> bool:
        """Return whether threads pause in the next block: after some blocks with readings, while any is due."""
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
            # Without other ranks one thread is left, which reads for a part of the time. In a job it would be one of
            # many.
            fewest = 0 if is_much or self._with_ranks else 1
            fewer = fewest if is_much else max(fewest, self._wanted // 2)
            if not fewer:  # until the run has earned its loss back
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
