"""What watching may cost: seconds earned by the run, seconds spent by the monitor, both measured."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import final

from esdmon.errors import InputError

Clock = Callable[[], float]
ADVANCE = 2.0
"""Seconds that may be spent before they are earned, and are paid back: a first short run of a small model is read whole
at each due step, and a run of ADVANCE/share, 200 s at 1 %, has not cost more than its share. Our choice."""


@dataclass(slots=True)
class Cost:
    """What a piece of work cost, in seconds of the run."""

    seconds: float = 0.0


@final
class Budget:
    """A share of the run: credit grows by share × wall time, and shrinks by what the monitor uses.

    Work is counted in seconds of the run, max(wall, cpu · run_wall/run_cpu), where a run that waits most of its time
    counts as one that uses a core: a reading that keeps two cores busy beside a loop that uses one takes a second share
    of the machine. So neither the time nor the CPU time of the monitor passes the share.

    Args:
        share: of the run, between 0 and 1; None: no limit.
        clock: wall time in seconds.
        cpu_clock: CPU seconds of all threads of the process; of the calling thread where others read for the monitor,
            whose seconds are taken by `spend`.
    """

    def __init__(
        self, share: float | None, *, clock: Clock = time.perf_counter, cpu_clock: Clock = time.process_time
    ) -> None:
        if share is not None and not (isinstance(share, Real) and 0 < share <= 1):
            msg = f"budget= is a share of the run, above 0 and at most 1, or None for no limit; got {share!r}"
            raise InputError(msg)
        self.share = share
        self._clock, self._cpu_clock = clock, cpu_clock
        self._start: tuple[float, float] | None = None
        self._earned_at = 0.0
        self._credit = 0.0
        self._spent = 0.0
        self._spending_since: tuple[float, float] | None = None

    def start(self) -> None:
        """The run begins; again is harmless."""
        if self._start is None:
            self._start = (self._clock(), self._cpu_clock())
            self._earned_at = self._start[0]

    def earn(self, at_most: float) -> None:
        """Credit for the time since the last call; neither more than so many seconds are saved, nor owed.

        So a long pause, or a phase in which nothing changed, is no licence to be slow afterwards.
        """
        if self.share is not None:
            now = self._clock()
            credit = self._credit + self.share * (now - self._earned_at)
            self._credit = max(-ADVANCE - at_most, min(at_most, credit))
            self._earned_at = now

    @property
    def credit(self) -> float:
        """Seconds that may be spent now; negative for what is owed; infinite without a limit.

        In a block of `spending` it shrinks as the block goes on.
        """
        if self.share is None:
            return math.inf
        return self._credit + max(0.0, ADVANCE - self.share * self._run()) - self._spending()

    @property
    def overhead(self) -> float:
        """The share of the run that was spent so far, in time or CPU time, whichever is more; NaN before it began."""
        run = self._run()
        return (self._spent + self._spending()) / run if run > 0 else math.nan

    @property
    def is_exceeded(self) -> bool:
        """Whether twice the share was spent, in a run that is long enough to tell: twice as long as pays an advance."""
        if self.share is None or self._run() < 2 * ADVANCE / self.share:
            return False
        return self.overhead > 2 * self.share

    def spend(self, seconds: float) -> None:
        """Take what was used elsewhere: by another thread."""
        self._spent += seconds
        self._credit -= seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Take what a block uses; a block inside another is part of that one."""
        if self._spending_since is not None:
            yield
            return
        self._spending_since = since = (self._clock(), self._cpu_clock())
        try:
            yield
        finally:
            self._spending_since = None
            self.spend(self._since(since))

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Measure a block."""
        cost, since = Cost(), (self._clock(), self._cpu_clock())
        try:
            yield cost
        finally:
            cost.seconds = self._since(since)

    def _spending(self) -> float:
        return 0.0 if self._spending_since is None else self._since(self._spending_since)

    def _run(self) -> float:
        return 0.0 if self._start is None else self._clock() - self._start[0]

    def _since(self, moment: tuple[float, float]) -> float:
        """Seconds of the run from a moment, in wall and CPU time, until now."""
        now = (self._clock(), self._cpu_clock())
        wall, cpu = (b - a for a, b in zip(moment, now, strict=True))
        run, run_cpu = (b - a for a, b in zip(self._start or now, now, strict=True))
        return max(wall, cpu * run / max(run_cpu, run)) if run > 0 else wall
