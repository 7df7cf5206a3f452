"""Keep failures of the monitor's parts away from the run: catch, count, log once, pause, and try again."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

_log = logging.getLogger("esdmon")
LIMIT = 3
"""Failures in a row after which a part is paused. Our choice."""
PAUSE = 10
"""Due steps of the first pause; each further one is twice as long. Our choice."""
LONGEST_PAUSE = 320
"""Due steps that a pause lasts at most, so that a part that recovers is found in a long run. Our choice."""
SLOW = 1.0
"""Seconds from which a part that others have written is reported as slow. Our choice: few training steps are longer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A part that has failed."""

    who: str
    """The part: `sink jsonl:runs/a`, `measure alpha`, `rule rank_collapse`, …"""
    message: str
    """Its last error."""
    step: int
    """The step of its last error."""
    count: int = 1
    """All its errors."""
    in_a_row: int = 1
    """Those since it last worked."""
    disabled: bool = False
    """Whether it is paused now: after three errors in a row, for 10, 20, 40, … due steps, until it works again."""


@dataclass(slots=True)
class _Breaker:
    """The circuit breaker of one part."""

    fault: Fault
    pause: int = 0
    """Due steps of the last pause; 0 before the first."""
    until: int = 0
    """The due step, by `Faults.advance`, at which the part is tried again."""


def describe(error: BaseException) -> str:
    """Return `ValueError: …`, also for an exception that cannot be printed."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
    except Exception:  # noqa: BLE001 -- a stranger's __str__
        return type(error).__name__


@final
class Faults:
    """Count the failures of each part, and pause the parts that keep failing.

    After `LIMIT` failures in a row a part is paused for `PAUSE` due steps and then tried once: if that fails, it is
    paused for twice as long, up to `LONGEST_PAUSE`; if it works, it is used as before. The first failure, each longer
    pause and the recovery are one log line each.

    Args:
        strict: raise instead, for tests and for finding a fault.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._breakers: dict[str, _Breaker] = {}
        self._slow: set[str] = set()
        self._now = 0

    def __iter__(self) -> Iterator[Fault]:
        """Yield the faults, in the order of their first failure."""
        for who, breaker in list(self._breakers.items()):  # a thread may add one meanwhile
            yield replace(breaker.fault, disabled=self.disabled(who))

    def advance(self) -> None:
        """Count a due step: pauses are measured in these."""
        self._now += 1

    def disabled(self, who: str) -> bool:
        """Return whether a part is paused."""
        return who in self._breakers and self._breakers[who].until > self._now

    @contextmanager
    def isolated(
        self, who: str, step: int, *, is_timed: bool = False, pauses: bool = True, heals: bool = True
    ) -> Iterator[None]:
        """Run a part whose exceptions must not reach the training loop.

        Args:
            who: name of the part in messages.
            step: optimizer steps so far.
            is_timed: log once if the part takes longer than `SLOW`.
            pauses: False for a part that is called even while it is paused.
            heals: False for a minor duty of the part: that it works does not mean that the part works again.

        Raises:
            Exception: what the part raised, if `strict`.
        """
        start = time.perf_counter()
        try:
            yield
            if heals:
                self.worked(who, step)
        except Exception as error:
            if self.strict:
                raise
            self.record(who, step, error, pauses=pauses)
        if is_timed and who not in self._slow and time.perf_counter() - start > SLOW:
            self._slow.add(who)
            took = time.perf_counter() - start
            _log.warning("esdmon: %s took %.1f s at step %d. This is logged once.", who, took, step)

    def record(self, who: str, step: int, error: Exception, *, pauses: bool = True) -> None:
        """Count a failure: of `isolated`, or one that was caught elsewhere."""
        message = describe(error)
        breaker = self._breakers.get(who)
        if breaker is None:
            breaker = self._breakers[who] = _Breaker(Fault(who, message, step))
            _log.warning(
                "esdmon: %s failed at step %d: %s. Training goes on, and it is tried again.", who, step, message
            )
        else:
            before = breaker.fault
            breaker.fault = Fault(who, message, step, before.count + 1, before.in_a_row + 1)
        if pauses and breaker.fault.in_a_row >= LIMIT and not self.disabled(who):
            self._pause(breaker)

    def worked(self, who: str, step: int | None = None) -> None:
        """Count a success: a part that works again is no longer paused."""
        breaker = self._breakers.get(who)
        if breaker is None or not breaker.fault.in_a_row:
            return
        if breaker.pause and breaker.fault.in_a_row >= LIMIT:
            at = "" if step is None else f" at step {step}"
            _log.warning("esdmon: %s works again%s, after %d failures.", who, at, breaker.fault.in_a_row)
        breaker.fault = replace(breaker.fault, in_a_row=0)

    def _pause(self, breaker: _Breaker) -> None:
        fault, longest = breaker.fault, breaker.pause
        has_worked_for_long = fault.in_a_row == LIMIT and self._now - breaker.until > breaker.pause
        longer = PAUSE if not longest or has_worked_for_long else min(LONGEST_PAUSE, 2 * longest)
        breaker.pause, breaker.until = longer, self._now + longer
        if longer != longest:
            _log.warning(
                "esdmon: %s has failed %d times in a row and is paused for %d due steps; see monitor.errors.",
                fault.who,
                fault.in_a_row,
                longer,
            )
