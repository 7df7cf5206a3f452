"""Define `UsageHints`, which logs hints about the use of a monitor, each once."""

import logging
import math
import os
from collections import deque
from itertools import pairwise
from typing import final

from esdmon.records import Report
from esdmon.records.table import shorten
from esdmon.records.text import count
from esdmon.records.values import whole

RISING = 5
"""Calls of `monitor.step()` in a row, each with one step more than the one before, after which the log says that these
are not numbers of steps since the last call. Our choice."""
STILL_REPORTS = 3
STILL_STEPS = 50
"""Number of consecutive reports, and of steps between the first and the last of them, without a change of any weight
since `watch()`, after which this is logged. Our choice: too large a loss scale, or a warm-up from zero, skips fewer."""
_WIDTH = 40  # characters of an invalid argument that are shown
NO_STEP = (
    "give watch() the optimizer, or call monitor.step(). If a host makes the optimizer, call watch() in its callback "
    "where training begins, with the model and the optimizer that it trains"
)
"""The remedy if no step was counted and no optimizer was given."""

_log = logging.getLogger("esdmon")


@final
class UsageHints:
    """Log hints about wrong use of a monitor, each once.

    Args:
        no_step: the remedy if no step was counted.
        is_copy: whether the monitor is a copy of one.
    """

    def __init__(self, no_step: str = NO_STEP, *, is_copy: bool = False) -> None:
        self._no_step = no_step
        self.is_copy = is_copy
        self._process = os.getpid()
        self._logged: set[str] = set()
        self._counts: deque[int] = deque(maxlen=RISING)
        """Arguments of the last calls of `monitor.step()`."""
        self._still: list[int] | None = []
        """Steps of the reports so far; None once a weight has moved, or after the log line."""

    @property
    def is_inactive(self) -> bool:
        """Return whether the monitor is a copy, or this process was forked from the one that made it."""
        return self.is_copy or os.getpid() != self._process

    def check_active(self) -> bool:
        """Return whether the monitor can be used; if not, log the reason."""
        if self.is_copy:
            self._warn_once(
                "the monitor is inactive, since it is a copy, made with the model or object that holds it: its steps "
                "are not counted. Call watch() with the model that trains."
            )
        elif self.is_inactive:
            self._warn_once(
                "the monitor is inactive in this process, which was forked from the one that called watch(): its steps "
                "are not counted. Call watch() in the process that trains."
            )
        return not self.is_inactive

    def ignored_step(self) -> None:
        """Log that the loop counts steps which the optimizer's hook already counts."""
        self._warn_once(
            "monitor.step() is ignored, since watch() was given the optimizer and counts its steps. Leave out one of "
            "the two."
        )

    def step_of(self, count: object, host_step: object) -> tuple[int, int | None]:
        """Return the arguments of `monitor.step()` as Python's own numbers, and log those that are wrong."""
        steps = self._count_of(count)
        if steps != 1:
            self._check_rising(steps)
        return steps, None if host_step is None else self._host_step_of(host_step)

    def _count_of(self, given: object) -> int:
        """Return a number of steps as an int; for anything else log it, and return 1."""
        number = whole(given)
        if number is not None and number >= 0:
            return number
        if self._is_first("count"):
            _log.warning(
                "esdmon: monitor.step(%s) counts as one step: it takes the number of steps since the last call, 0 or "
                "more. Call monitor.step() after each step.",
                shorten(repr(given), _WIDTH),
            )
        return 1

    def _check_rising(self, steps: int) -> None:
        """Log that `monitor.step()` gets the number of the step instead of the number of steps since the last call."""
        self._counts.append(steps)
        is_rising = len(self._counts) == RISING and all(now == last + 1 for last, now in pairwise(self._counts))
        if is_rising and self._is_first("rising"):
            _log.warning(
                "esdmon: monitor.step() was called with %s: it takes the number of steps since the last call. Steps "
                "are counted too fast, and readings come at other steps than every= says. Call monitor.step() without "
                "a number, or with host_step=.",
                ", ".join(map(str, self._counts)),
            )

    def _host_step_of(self, given: object) -> int | None:
        """Return the host's step as an int; for anything but a whole number log it, and return None."""
        number = whole(given)
        if number is None and self._is_first("host_step"):
            _log.warning(
                "esdmon: host_step=%s is not a whole number. Readings are drawn at the number of steps instead. Pass "
                "an int.",
                shorten(repr(given), _WIDTH),
            )
        return number

    def report(self, report: Report) -> None:
        """Log that none of the weights has changed since `watch()`: another model trains, or none."""
        ways = [layer.start_ratio for layer in report if layer.status == "ok" and layer.trainable]
        if any(way > 0 for way in ways):
            self._still = None
        if self._still is None or not ways or any(map(math.isnan, ways)):  # NaN: unknown, as at the first reading
            return
        self._still.append(report.step)
        if len(self._still) >= STILL_REPORTS and self._still[-1] - self._still[0] >= STILL_STEPS:
            self._still = None
            self._warn_once(
                f"none of the weights that are watched has changed by step {report.step}, so readings say nothing of "
                "the training. If another model trains, or a copy of this one, or a dict of parameters with "
                "torch.func, give watch() that; if the loop makes a new dict at each step, put its tensors into the "
                "watched one, by update(); if nothing trains, check the learning rate."
            )

    def nothing_read(self, steps: int) -> None:
        """Log that a run has ended without a reading."""
        if steps:
            self._warn_once(f"nothing was read in {count(steps, 'step')}, since none was due: lower every=.")
        else:
            self._warn_once(f"nothing was read, since no step was counted: {self._no_step}.")

    def _is_first(self, text: str) -> bool:
        """Return whether this hint was not logged before, and mark it as logged."""
        is_first = text not in self._logged
        self._logged.add(text)
        return is_first

    def _warn_once(self, text: str) -> None:
        if self._is_first(text):
            _log.warning("esdmon: %s", text)
