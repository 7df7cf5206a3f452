"""Compare the time of steps during which threads read with the time of steps just before and after, without readings.

The time of a step drifts: a processor clocks down, or another job on the host begins to work. So a block of steps
without readings is compared only with the blocks next to it, on both sides, which cancels a steady drift. (In a job of
several ranks there are blocks in between, in which readings end.)

One comparison gives y, the logarithm of a ratio of times, and f, the share of the time in which threads have read. A
slow-down δ makes y = δf plus noise, so δ is estimated by the median of y/f, weighted by f².
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

_NEAR = 3  # blocks on each side that are compared; this and the following constants are our choice
_MAX_COMPARISONS = 20  # comparisons
_FEWEST = 3  # comparisons before anything is concluded
_MIN_READING_SHARE = 0.1  # smallest share of a block's time with reading threads, for a block with readings


@dataclass(frozen=True, slots=True)
class SlowDown:
    """The relative slow-down δ of steps while threads read, with an interval."""

    share: float
    """δ; may be negative, by chance."""
    low: float
    """Lower end of the interval of δ. δ is below it in at most 1 % of cases, since threads that are halted by mistake
    wait."""
    high: float
    """Upper end of the interval of δ. δ is above it in at most 20 % of cases, since a thread that is added by mistake
    makes all threads read less."""


@dataclass(frozen=True, slots=True)
class _Compared:
    slower: float
    """y"""
    reading: float
    """f"""

    @property
    def share(self) -> float:
        return self.slower / self.reading


@dataclass(frozen=True, slots=True)
class _Block:
    seconds: float
    reading: float


@final
class Comparison:
    """The times of blocks of steps, in their order, and the comparisons of blocks with and without readings."""

    def __init__(self) -> None:
        self._found: deque[_Compared] = deque(maxlen=_MAX_COMPARISONS)
        self.forget()

    def forget(self) -> None:
        """Drop all comparisons, when the number of threads has changed."""
        self._found.clear()
        self.slow_down: SlowDown | None = None
        """Slow-down of steps while threads read; None after too few comparisons."""
        self._before: deque[_Block] = deque(maxlen=_NEAR)
        self._still: list[_Block] = []
        self._after: list[_Block] = []

    def add(self, seconds: float, reading: float) -> None:
        """Add a block of steps.

        Args:
            seconds: duration of the block, above 0.
            reading: share of the block's time in which threads have read, 0 to 1. Blocks above 0 and below a tenth are
                ignored.
        """
        block = _Block(seconds, reading)
        if not reading:
            if self._after:
                self._conclude()
            if self._before:
                self._still.append(block)
            if len(self._still) > 2 * _NEAR:  # only those at both ends are compared
                del self._still[_NEAR]
        elif reading >= _MIN_READING_SHARE:
            if not self._still:
                self._before.append(block)
                return
            self._after.append(block)
            if len(self._after) == _NEAR:
                self._conclude()

    def _conclude(self) -> None:
        sides = ((self._before, self._still[:_NEAR]), (self._after, self._still[-_NEAR:]))
        slower = [math.log(_median(reading) / _median(still)) for reading, still in sides]
        shares = [statistics.mean(block.reading for block in reading) for reading, _ in sides]
        self._found.append(_Compared(statistics.mean(slower), statistics.mean(shares)))
        self._before = deque(self._after, maxlen=_NEAR)
        self._still, self._after = [], []
        self._drop_outdated()
        if len(self._found) >= _FEWEST:
            (low, _), (_, high) = _interval(self._found, _UNLIKELY), _interval(self._found, _LIKELY)
            self.slow_down = SlowDown(_weighted_median(self._found), low, high)

    def _drop_outdated(self) -> None:
        """Drop comparisons from before a change, if the last comparisons differ from the others beyond chance."""
        found = [*self._found]
        if len(found) >= 2 * _FEWEST:
            (low, high), (lower, higher) = (_interval(part, _UNLIKELY) for part in (found[:-_FEWEST], found[-_FEWEST:]))
            if lower > high or higher < low:
                self._found = deque(found[-_FEWEST:], maxlen=_MAX_COMPARISONS)


@dataclass(frozen=True, slots=True)
class _Quantiles:
    """Quantiles for one probability: of the normal law, and of Student's law for 2, 3, … `_MAX_COMPARISONS` values."""

    normal: float
    student: tuple[float, ...]


_UNLIKELY = _Quantiles(  # 1 of 200
    2.576,
    (63.66, 9.92, 5.84, 4.6, 4.03, 3.71, 3.5, 3.36, 3.25, 3.17, 3.11, 3.05, 3.01, 2.98, 2.95, 2.92, 2.9, 2.88, 2.86),
)
_LIKELY = _Quantiles(  # 3 of 20
    1.036,
    (1.96, 1.39, 1.25, 1.19, 1.16, 1.13, 1.12, 1.11, 1.1, 1.09, 1.09, 1.08, 1.08, 1.08, 1.07, 1.07, 1.07, 1.07, 1.07),
)


def _interval(found: Sequence[_Compared], outside: _Quantiles) -> tuple[float, float]:
    """Return an interval of δ from two or more comparisons; at each end the narrower of two rules is used.

    Student's interval of the slope of y over f is narrow for few comparisons without outliers. The interval of the sign
    test is also valid with outliers: about k/2 of k ratios y/f are below δ.
    """
    k, ordered = len(found), sorted(each.share for each in found)
    squares = sum(each.reading**2 for each in found)
    slope = sum(each.slower * each.reading for each in found) / squares
    residual = sum((each.slower - slope * each.reading) ** 2 for each in found)
    error = outside.student[k - 2] * math.sqrt(residual / (k - 1) / squares)
    skipped = math.floor((k - outside.normal * k**0.5) / 2)
    low, high = (ordered[skipped], ordered[-1 - skipped]) if skipped >= 0 else (-math.inf, math.inf)
    return max(slope - error, low), min(slope + error, high)


def _weighted_median(found: Sequence[_Compared]) -> float:
    """Return the median of y/f, weighted by f²; the mean of two values if it lies between them."""
    ordered = sorted(found, key=lambda each: each.share)
    half = sum(each.reading**2 for each in ordered) / 2
    below, last = 0.0, ordered[0]
    for each in ordered:
        if below >= half:
            return (last.share + each.share) / 2 if math.isclose(below, half) else last.share
        below, last = below + each.reading**2, each
    return last.share


def _median(blocks: Sequence[_Block]) -> float:
    return statistics.median(block.seconds for block in blocks)
