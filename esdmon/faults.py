"""What goes wrong while watching is kept apart from the run: caught, counted, told once, and shut off if it goes on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

_log = logging.getLogger("esdmon")
LIMIT = 3
"""Failures after which a part is not asked again."""


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

    @property
    def disabled(self) -> bool:
        """Whether it is no longer asked."""
        return self.count >= LIMIT


def describe(error: BaseException) -> str:
    """`ValueError: …`, also for an exception that cannot be printed."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- a stranger's __str__
        return type(error).__name__


@final
class Faults:
    """The parts that have failed so far. `strict=True` raises instead, for tests and for finding a fault."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._by_part: dict[str, Fault] = {}

    def __iter__(self) -> Iterator[Fault]:
        """The faults, in the order of their first failure."""
        return iter(self._by_part.values())

    def disabled(self, who: str) -> bool:
        """Whether a part has failed so often that it is left alone."""
        return who in self._by_part and self._by_part[who].disabled

    @contextmanager
    def isolated(self, who: str, step: int) -> Iterator[None]:
        """Run a part whose exceptions must not reach the training loop."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._take(who, step, error)

    def _take(self, who: str, step: int, error: Exception) -> None:
        message = describe(error)
        before = self._by_part.get(who)
        fault = Fault(who, message, step, 1 if before is None else before.count + 1)
        self._by_part[who] = fault
        if before is None:
            _log.warning("%s failed at step %d and is left out: %s. The run goes on.", who, step, message)
        elif fault.count == LIMIT:
            _log.warning("%s has failed %d times and is shut off; see monitor.errors.", who, LIMIT)
