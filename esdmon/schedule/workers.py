"""Set how many threads read at once, from how much slower the training's steps are while they read.

Reading on idle cores costs a run only what its steps lose: by shared memory bandwidth, by the interpreter's lock, or
where cores were not idle after all. That is measured: the mean step of blocks in which threads read, against that of
blocks in which none did, δ = median(reading) / median(still) − 1, with the error 2·√(MAD²/n + MAD²/n') / median(still).
Where δ is above the budget by more than its error, the threads are halved; where it is as clearly below, there is one
more.

The ranks of a job wait for each other in each step, so that each of them loses what the readings of any cost. There
all ranks stand still in the same blocks: for as many as the longest reading takes to end, as rank 0 says, and one
more, which is compared. So δ is what the readings of all ranks cost, and each rank halves its threads where it is too
much. All ranks count the same steps, also those that have no idle core: their one thread stands still too.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

_BLOCK = 20  # steps; this and what follows is our choice
_KEPT = 20  # blocks of each kind that are compared
_FEWEST = 4  # blocks of each kind before anything is concluded
_STILL = 4  # one block in so many stands still, where no others do
MOST_ENDING = 8
"""Blocks at most in which the readings of a job end before one is measured: longer readings are not. Our choice."""
_RETRY = 50  # blocks until reading beside the training is tried again, where it had cost too much
_MUCH = 4  # times the budget, from which no thread is left
_MAD = 1.4826  # times the median absolute deviation is the standard deviation of normal numbers


def blocks_to_end(seconds: float, step_seconds: float) -> int:
    """Return in how many blocks of steps a reading of so many seconds ends, 1 to `MOST_ENDING`."""
    return max(1, min(MOST_ENDING, math.ceil(seconds / (_BLOCK * step_seconds)))) if step_seconds > 0 else 1


def steps_still(ending: int) -> int:
    """Return how many steps a thread may stand still where readings end in so many blocks; 0 where none ever does."""
    return _BLOCK * (ending + 2) if ending else 0


@dataclass(frozen=True, slots=True)
class SlowDown:
    """By how much steps are slower while threads read."""

    share: float
    """δ; may be negative, by chance."""
    error: float
    """Twice its standard error."""


@final
class Workers:
    """Count steps, and set how many threads may read beside them.

    Args:
        share: by which steps may be slower, the budget.
        most: returns the threads that idle cores allow now, 0 where none is idle, given how many cores have read.
        with_ranks: whether other ranks read beside the same steps.
        is_known: returns whether idle cores have been counted.
        clock: seconds.
    """

    def __init__(
        self,
        share: float,
        most: Callable[[float], int],
        *,
        with_ranks: bool = False,
        is_known: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._share = share
        self._most = most
        self._with_ranks = with_ranks
        self._is_known = is_known
        self._clock = clock
        self._wanted = 1
        self._cap = most(0.0)
        self._reading: deque[float] = deque(maxlen=_KEPT)
        self._still: deque[float] = deque(maxlen=_KEPT)
        self._since: float | None = None
        self._steps = self._busy_steps = self._blocks = 0
        self._is_dropped = False
        self._lost = 0.0
        """Share of a block that is lost, as last known."""
        self._blocks_until_retry = 0
        self._without_still = 0
        self.ending = 1
        """Blocks in which readings end before one is measured, where other ranks read too."""
        self.stands_still = False
        """True while no thread may begin to read, so that steps without it are measured."""

    @property
    def count(self) -> int:
        """Return how many threads may read on idle cores; 0 where no core is idle, or reading slows the steps."""
        return min(self._wanted, self._cap)

    @property
    def has_no_core(self) -> bool:
        """Return whether it is known that no thread may read on an idle core."""
        return not self.count and self._is_known()

    @property
    def slow_down(self) -> SlowDown | None:
        """Return by how much steps are slower while threads read; None where it is not known yet."""
        if min(len(self._reading), len(self._still)) < _FEWEST:
            return None
        on, off = statistics.median(self._reading), statistics.median(self._still)
        if off <= 0:
            return None
        spread = sum(_deviation(times) ** 2 / len(times) for times in (self._reading, self._still))
        return SlowDown(on / off - 1, 2 * spread**0.5 / off)

    def step(self, *, is_busy: bool) -> float:
        """Count a step of the training.

        Args:
            is_busy: whether a thread reads.

        Returns:
            The seconds that the steps of a block have lost to reading, where one has ended with this step; else 0.
        """
        if self._since is None:
            self._begin_block()
            return 0.0
        self._steps += 1
        self._busy_steps += is_busy
        if self._steps < _BLOCK:
            return 0.0
        lost = 0.0 if self._is_dropped else self._compare(self._clock() - self._since)
        self._adjust()
        self._blocks += 1
        self._begin_block()
        if self._with_ranks:
            self.stands_still = self._place() >= _STILL - 1
        else:
            self.stands_still = self.count > 0 and self._without_still >= _STILL - 1
        return lost

    def wait(self) -> None:
        """Drop the block that is measured, and let threads begin: the training waits for readings."""
        self.stands_still = False
        self.drop()

    def drop(self) -> None:
        """Drop the block that is measured: a step of it took longer than others, for another reason than threads."""
        self._is_dropped = True

    def _place(self) -> int:
        """Return the place of this block among those of a job: some that read, some in which readings end, a still."""
        return self._blocks % (_STILL + self.ending)

    def _compare(self, seconds: float) -> float:
        """Take note of a block of so many seconds, and return those that it has lost."""
        if self._busy_steps == self._steps:
            if not (self._with_ranks and self.stands_still):  # then fewer of the others read
                self._reading.append(seconds / self._steps)
            self._without_still += 1
            if self.slow_down is not None:
                self._lost = max(0.0, self.slow_down.share)
            return self._lost * seconds if self.count else 0.0
        if not self._busy_steps and (not self._with_ranks or self._place() == _STILL - 1 + self.ending):
            self._still.append(seconds / self._steps)
            self._without_still = 0
        return 0.0

    def _begin_block(self) -> None:
        self._cap = self._most(self._wanted * self._busy_steps / max(1, self._steps))
        self._since = self._clock()
        self._steps = self._busy_steps = 0
        self._is_dropped = False

    def _adjust(self) -> None:
        if not self._wanted:
            self._blocks_until_retry -= 1
            if self._blocks_until_retry <= 0:
                self._want(1)
            return
        found = self.slow_down
        if found is None:
            return
        if found.share - found.error > self._share:
            self._want(0 if found.share - found.error > _MUCH * self._share else self._wanted // 2)
            self._blocks_until_retry = _RETRY
        elif found.share + found.error < self._share and self._wanted < self._cap:
            self._want(self._wanted + 1)

    def _want(self, count: int) -> None:
        """Set the number of threads; what was measured with another number does not count any more."""
        self._wanted = count
        self._reading.clear()


def _deviation(times: deque[float]) -> float:
    middle = statistics.median(times)
    return _MAD * statistics.median(abs(time - middle) for time in times)
