"""Limit the share of the run's time that monitoring takes: the run adds credit in seconds, monitoring uses it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import final

from esdmon.errors import InputError
from esdmon.limits import Limits

Clock = Callable[[], float]


@dataclass(slots=True)
class Cost:
    """The cost of a block, in seconds of the run."""

    seconds: float = 0.0


@final
class Budget:
    """A share of the run: credit grows by share × wall time, and shrinks by what the monitor uses.

    Work is counted in seconds of the run, max(wall, cpu · run_wall/run_cpu). A reading that keeps two cores busy,
    beside a loop that uses one core, takes a larger share of CPU time than of wall time; with this formula neither
    share of the monitor exceeds the limit. A run that waits most of its time counts as one that uses one core.

    Args:
        share: largest share of the run, between 0 and 1; None for no limit.
        clock: wall time in seconds.
        cpu_clock: CPU seconds of all threads of the process; if another thread reads, of the calling thread only, and
            `spend` adds the seconds of the other thread.
        advance: seconds that may be spent before they are earned.
        rate: returns the seconds that threads may read per second of the run. It is their number if they read on idle
            cores; then only the slow-down of the steps is charged. None, or a value below the share: the time of the
            threads is charged in full.

    Raises:
        InputError: for a share outside (0, 1].
    """

    def __init__(
        self,
        share: float | None,
        *,
        clock: Clock = time.perf_counter,
        cpu_clock: Clock = time.process_time,
        advance: float = Limits().advance_seconds,
        rate: Callable[[], float] | None = None,
    ) -> None:
        if share is not None and not (isinstance(share, Real) and share is not True and 0 < share <= 1):
            msg = f"budget= must be a share of the run, above 0 and at most 1, or None for no limit; got {share!r}"
            raise InputError(msg)
        self.share: float | None = share
        self._clock, self._cpu_clock = clock, cpu_clock
        self._advance = advance
        self._rate = rate
        self._start: tuple[float, float] | None = None
        self._earned_at = 0.0
        self._credit = 0.0
        self._spent = 0.0
        self._spending_since: tuple[float, float] | None = None
        self._held = 0.0

    def start(self) -> None:
        """Start the clocks at the first call."""
        if self._start is None:
            self._start = (self._clock(), self._cpu_clock())
            self._earned_at = self._start[0]

    def earn(self, at_most: float) -> float:
        """Add credit for the time since the last call, and return it; 0 without a limit.

        Args:
            at_most: limit of the credit in seconds of reading, and of the debt beyond the advance, so that readings do
                not slow the run after a long pause or a phase without changes.
        """
        if self.share is None:
            return 0.0
        now = self._clock()
        earned = self.share * (now - self._earned_at)
        self._credit = self.limited(self._credit + earned, at_most / self.pace)
        self._earned_at = now
        return earned

    def limited(self, credit: float, at_most: float) -> float:
        """Return a credit, at most so many seconds, and as a debt at most these beyond the advance."""
        return max(-self._advance - at_most, min(at_most, credit))

    @property
    def credit(self) -> float:
        """Return the seconds that may be spent now; negative for a debt, infinite without a limit.

        Inside a block of `spending` it shrinks while the block runs.
        """
        if self.share is None:
            return math.inf
        return self._credit + max(0.0, self._advance - self.share * self.run_seconds) - self._spending()

    @property
    def reading_credit(self) -> float:
        """Return the seconds of reading that may be begun now; see `credit`."""
        return self.credit_at(self.pace)

    def credit_at(self, pace: float, *, ahead: float = 0.0, credit: float | None = None) -> float:
        """Return the seconds of reading that a rank with such a budget may begin; infinite without a limit.

        Args:
            pace: seconds of reading per second of credit of the rank.
            ahead: seconds of credit that will be earned until the reading.
            credit: unused credit of the rank in seconds; None for the credit of this budget.
        """
        own = self._credit if credit is None else credit
        return self.credit - self._credit + own + ahead + (pace - 1) * max(0.0, own + ahead)

    @property
    def pace(self) -> float:
        """Return the seconds of reading that cost as much credit as a second of the run."""
        rate = 0.0 if self._rate is None else self._rate()
        return rate / self.share if self.share and rate > self.share else 1.0

    @property
    def overhead(self) -> float:
        """Return the share of the run spent so far, of time or CPU time, whichever is more; NaN before the start."""
        run = self.run_seconds
        return self.spent / run if run > 0 else math.nan

    @property
    def spent(self) -> float:
        """Return the seconds spent so far."""
        return self._spent + self._spending()

    @property
    def run_seconds(self) -> float:
        """Return the seconds since the start of the run; 0 before it."""
        return 0.0 if self._start is None else self._clock() - self._start[0]

    @property
    def is_exceeded(self) -> bool:
        """Return whether more than the advance plus twice the share of the run was spent."""
        return self.share is not None and self.spent > self._advance + 2 * self.share * self.run_seconds

    def training_clock(self) -> float:
        """Return the seconds of a clock that is paused in blocks of `spending`."""
        return (self._clock() if self._spending_since is None else self._spending_since[0]) - self._held

    def spend(self, seconds: float) -> None:
        """Charge seconds that another thread has used."""
        self._spent += seconds
        self._credit -= seconds

    def read(self, seconds: float) -> None:
        """Charge the seconds of readings in other threads, which cost nothing on idle cores."""
        self._credit -= seconds / self.pace
        if self.pace == 1:
            self._spent += seconds

    def lose(self, seconds: float) -> None:
        """Charge the time by which readings in other threads have slowed the training's steps."""
        self._spent += seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Charge the cost of a block; a block inside another is charged once, with the outer one."""
        if self._spending_since is not None:
            yield
            return
        self._spending_since = since = (self._clock(), self._cpu_clock())
        try:
            yield
        finally:
            self._spending_since = None
            self._held += self._clock() - since[0]
            self.spend(self._since(since))

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Measure the cost of a block, without charging it."""
        cost, since = Cost(), (self._clock(), self._cpu_clock())
        try:
            yield cost
        finally:
            cost.seconds = self._since(since)

    def _spending(self) -> float:
        return 0.0 if self._spending_since is None else self._since(self._spending_since)

    def _since(self, moment: tuple[float, float]) -> float:
        """Return the cost from a moment (wall, CPU) until now, in seconds of the run."""
        now = (self._clock(), self._cpu_clock())
        wall, cpu = (b - a for a, b in zip(moment, now, strict=True))
        run, run_cpu = (b - a for a, b in zip(self._start or now, now, strict=True))
        return max(wall, cpu * run / max(run_cpu, run)) if run > 0 else wall
