"""What goes wrong while watching is kept apart from the run: caught, counted, told once, and shut off if it goes on."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

_log = logging.getLogger("esdmon")
LIMIT = 3
"""Failures in a row after which a part is not asked again. Our choice."""


SLOW = 1.0
"""Seconds from which a part that others have written is told to be slow. Our choice: few training steps are longer."""


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

    @property
    def disabled(self) -> bool:
        """Whether it is no longer asked: after three errors in a row."""
        return self.in_a_row >= LIMIT


def describe(error: BaseException) -> str:
    """`ValueError: …`, also for an exception that cannot be printed."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
    except Exception:  # noqa: BLE001 -- a stranger's __str__
        return type(error).__name__


@final
class Faults:
    """The parts that have failed so far. `strict=True` raises instead, for tests and for finding a fault."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._by_part: dict[str, Fault] = {}
        self._slow: set[str] = set()

    def __iter__(self) -> Iterator[Fault]:
        """The faults, in the order of their first failure."""
        return iter(self._by_part.values())

    def disabled(self, who: str) -> bool:
        """Whether a part has failed so often that it is left alone."""
        return who in self._by_part and self._by_part[who].disabled

    @contextmanager
    def isolated(self, who: str, step: int, *, is_timed: bool = False) -> Iterator[None]:
        """Run a part whose exceptions must not reach the training loop; tell once where one that is timed is slow."""
        start = time.perf_counter()
        try:
            yield
            self._forgive(who)
        except Exception as error:
            if self.strict:
                raise
            self._take(who, step, error)
        if is_timed and who not in self._slow and time.perf_counter() - start > SLOW:
            self._slow.add(who)
            _log.warning("esdmon: %s took %.1f s at step %d. Told once.", who, time.perf_counter() - start, step)

    def _take(self, who: str, step: int, error: Exception) -> None:
        message = describe(error)
        before = self._by_part.get(who)
        if before is None:
            self._by_part[who] = Fault(who, message, step)
            _log.warning("esdmon: %s failed at step %d and is left out: %s. The run goes on.", who, step, message)
            return
        self._by_part[who] = Fault(who, message, step, before.count + 1, before.in_a_row + 1)
        if self._by_part[who].in_a_row == LIMIT:
            _log.warning("esdmon: %s has failed %d times in a row and is shut off; see monitor.errors.", who, LIMIT)

    def _forgive(self, who: str) -> None:
        """A part that works again is not counted towards being shut off."""
        before = self._by_part.get(who)
        if before is not None and before.in_a_row and not before.disabled:
            self._by_part[who] = replace(before, in_a_row=0)
