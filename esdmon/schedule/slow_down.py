"""Compare steps during which threads read with those just before and after, during which none did.

The time of a step drifts: a processor clocks down, a neighbour on the host begins to work. So blocks of steps without a
reading are compared only with those next to them, on both sides, which leaves a steady drift out of the result.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from scipy import special

_NEAR = 3  # blocks on each side that are compared; this and what follows is our choice
_KEPT = 20  # comparisons
_FEWEST = 3  # comparisons before anything is concluded
_UNLIKELY = 0.005  # probability that δ is below its interval: threads that are halted by mistake wait long
_ABOVE = 0.15  # probability that δ is above it: a thread that is added by mistake makes all of them read less


@dataclass(frozen=True, slots=True)
class SlowDown:
    """By how much steps are slower while threads read."""

    share: float
    """δ, the median of all comparisons; may be negative, by chance."""
    low: float
    """The lower end of its interval."""
    high: float
    """The upper end."""


@final
class Comparison:
    """Collect the times of blocks of steps, in their order, and compare those of the two kinds."""

    def __init__(self) -> None:
        self._found: deque[float] = deque(maxlen=_KEPT)
        self.forget()

    def forget(self) -> None:
        """Drop all comparisons, where the number of threads has changed."""
        self._found.clear()
        self.slow_down: SlowDown | None = None
        """By how much steps are slower while threads read; None where too little was compared."""
        self._before: deque[float] = deque(maxlen=_NEAR)
        self._still: list[float] = []
        self._after: list[float] = []

    def add_reading(self, seconds: float) -> None:
        """Add a block in which threads read in each step; seconds are above 0."""
        if not self._still:
            self._before.append(seconds)
            return
        self._after.append(seconds)
        if len(self._after) == _NEAR:
            self._conclude()

    def add_still(self, seconds: float) -> None:
        """Add a block in which no thread read."""
        if self._after:
            self._conclude()
        if self._before:
            self._still.append(seconds)

    def _conclude(self) -> None:
        sides = ((self._before, self._still[:_NEAR]), (self._after, self._still[-_NEAR:]))
        logs = [math.log(statistics.median(reading) / statistics.median(still)) for reading, still in sides]
        self._found.append(math.expm1(statistics.mean(logs)))
        self._before.extend(self._after)
        self._still, self._after = [], []
        self._drop_outdated()
        if len(self._found) >= _FEWEST:
            low, high = _interval(self._found, above=_ABOVE)
            self.slow_down = SlowDown(statistics.median(self._found), low, high)

    def _drop_outdated(self) -> None:
        """Drop what was compared before a change: where the last comparisons differ from the others beyond chance."""
        found = [*self._found]
        if len(found) >= 2 * _FEWEST:
            (low, high), (lower, higher) = (_interval(part) for part in (found[:-_FEWEST], found[-_FEWEST:]))
            if lower > high or higher < low:
                self._found = deque(found[-_FEWEST:], maxlen=_KEPT)


def _interval(found: Sequence[float], below: float = _UNLIKELY, above: float = _UNLIKELY) -> tuple[float, float]:
    """Return an interval of the median of two numbers or more, by the narrower of two rules at each end.

    Student's interval is narrow for few numbers without outliers. That of the sign test holds with outliers too: of k
    numbers about k/2 are below the median.

    Args:
        found: the numbers.
        below: the probability that the median is below the interval.
        above: the probability that it is above.
    """
    k, ordered = len(found), sorted(found)
    mean, error = statistics.mean(found), statistics.stdev(found) / k**0.5
    (low, skipped), (high, cut) = (_quantiles(k, outside) for outside in (below, above))
    return (
        max(mean - low * error, ordered[skipped] if skipped >= 0 else -math.inf),
        min(mean + high * error, ordered[-1 - cut] if cut >= 0 else math.inf),
    )


@lru_cache
def _quantiles(k: int, outside: float) -> tuple[float, int]:
    """Return Student's quantile for k numbers, and how many of them are outside the interval of the sign test."""
    normal = float(special.ndtri(1 - outside))
    return float(special.stdtrit(k - 1, 1 - outside)), math.floor((k - normal * k**0.5) / 2)
