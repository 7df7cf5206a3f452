"""Keep failures of the monitor's parts away from the training: catch, count, log once, pause, try again.

What a signal handler of the host raises while a part runs, such as a time limit, is not a failure of that part: it is
let through.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType, TracebackType
from typing import Any, Literal, TypeVar, final

from esdmon.limits import Limits

During = Literal["training", "replay", "reading"]
Found = TypeVar("Found")

_log = logging.getLogger("esdmon")


@dataclass(frozen=True, slots=True)
class Fault:
    """The failures of one part."""

    who: str
    """The part: `sink jsonl:runs/a`, `measure alpha`, `rule rank_collapse`, …"""
    message: str
    """The last error, as `ValueError: …`."""
    step: int
    """The step of the last error."""
    count: int = 1
    """The number of errors so far."""
    in_a_row: int = 1
    """The number of errors since the part last worked."""
    disabled: bool = False
    """True while the part is paused: after three errors in a row, for 10, 20, 40, … due steps, until it works again."""


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
    except Exception:  # noqa: BLE001 -- any exception's __str__ may raise
        return type(error).__name__


def let_through(error: BaseException) -> None:
    """Raise an exception again if a signal handler has raised it, or the exception that it was made of.

    Python runs handlers between any two instructions of the main thread, so they may raise in our code what is meant
    for the training loop.

    Args:
        error: that was caught.

    Raises:
        BaseException: what the handler has raised.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    each: BaseException | None = error
    while each is not None and handlers:
        trace = each.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in handlers:
                raise each
            trace = trace.tb_next
        each = each.__cause__ or each.__context__


def _code_of(handler: Any) -> CodeType | None:
    """Return the code of a signal handler; None for the default ones, and for one that is not written in Python."""
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):
        return None
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


@final
class Faults:
    """Count the failures of each part, and pause the parts that keep failing: a circuit breaker for each.

    After `limits.failures` failures in a row a part is paused for `limits.first_pause` due steps and then tried once:
    if that fails, it is paused for twice as long, up to `limits.longest_pause`; if it works, it is used as before. The
    first failure, each longer pause and the recovery are one log line each.

    Args:
        strict: raise instead, for tests and for finding a fault.
        limits: the counts above, and from when a call is logged as slow.
        during: what calls the parts, for the words of log lines: a training; the replay of a finished run; or the
            reading of a model that is read once. In the last two no step is due, so what is paused is not tried again.
    """

    def __init__(self, *, strict: bool = False, limits: Limits | None = None, during: During = "training") -> None:
        self.strict = strict
        self._during = during
        self._limits = limits or Limits()
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

    def isolated(
        self, who: str, step: int, *, is_timed: bool = False, pauses: bool = True, heals: bool = True
    ) -> "Isolated":
        """Run a part whose exceptions must not reach the training loop, in a `with` statement.

        Args:
            who: name of the part in messages.
            step: optimizer steps so far.
            is_timed: log once if the part takes longer than `limits.slow_seconds`.
            pauses: False for a part that is called even while it is paused.
            heals: False for a secondary call, whose success does not mean that the part works again.

        Raises:
            Exception: what the part raised, if `strict`; what a signal handler of the host raised meanwhile.
        """
        return Isolated(self, who, step, is_timed=is_timed, pauses=pauses, heals=heals)

    def call(
        self,
        who: str,
        step: int,
        part: Callable[..., Found],
        /,
        *given: Any,
        default: Found,
        pauses: bool = True,
        **named: Any,
    ) -> Found:
        """Call a part as in `isolated`, and return what it returns, or the default where it fails.

        For what is called at each step: it takes less time than a `with` statement.
        """
        try:
            found = part(*given, **named)
        except Exception as error:
            if self.strict:
                raise
            let_through(error)
            self.record(who, step, error, pauses=pauses)
            return default
        if self._breakers:
            self.worked(who, step)
        return found

    def took(self, who: str, step: int, seconds: float) -> None:
        """Log once that a part took longer than the limit."""
        if seconds > self._limits.slow_seconds and who not in self._slow:
            self._slow.add(who)
            _log.warning(
                "esdmon: %s took %.1f s at step %d (limit %g s). Further slow calls are not logged.",
                who,
                seconds,
                step,
                self._limits.slow_seconds,
            )

    def record(self, who: str, step: int, error: Exception, *, pauses: bool = True) -> None:
        """Count a failure: of `isolated`, or one that was caught elsewhere."""
        message = describe(error)
        breaker = self._breakers.get(who)
        if breaker is None:
            breaker = self._breakers[who] = _Breaker(Fault(who, message, step))
            self._log_first(breaker.fault)
        else:
            before = breaker.fault
            breaker.fault = Fault(who, message, step, before.count + 1, before.in_a_row + 1)
        if pauses and breaker.fault.in_a_row >= self._limits.failures and not self.disabled(who):
            self._pause(breaker)

    def worked(self, who: str, step: int) -> None:
        """Count a success: a part that works again is no longer paused."""
        breaker = self._breakers.get(who)
        if breaker is None or not breaker.fault.in_a_row:
            return
        if breaker.pause and breaker.fault.in_a_row >= self._limits.failures:
            _log.warning("esdmon: %s works again at step %d, after %d failures.", who, step, breaker.fault.in_a_row)
        breaker.fault = replace(breaker.fault, in_a_row=0)

    def _log_first(self, fault: Fault) -> None:
        who, step, message = fault.who, fault.step, fault.message
        if self._during == "replay":
            _log.warning(
                "esdmon: %s failed at step %d: %s. The replay continues without its findings there.", who, step, message
            )
        elif self._during == "reading":
            _log.warning("esdmon: %s failed: %s. Reading continues without it.", who, message)
        else:
            _log.warning(
                "esdmon: %s failed at step %d: %s. Training continues, and this part is tried again.",
                who,
                step,
                message,
            )

    def _pause(self, breaker: _Breaker) -> None:
        fault, last, limits = breaker.fault, breaker.pause, self._limits
        has_worked_for_long = fault.in_a_row == limits.failures and self._now - breaker.until > last
        pause = limits.first_pause if not last or has_worked_for_long else min(limits.longest_pause, 2 * last)
        breaker.pause, breaker.until = pause, self._now + pause
        if self._during == "replay":
            _log.warning(
                "esdmon: %s has failed %d times in a row and is not checked in the rest of this run, so its alerts are "
                "missing. Correct it, and replay the run again.",
                fault.who,
                fault.in_a_row,
            )
        elif self._during == "reading":
            _log.warning(
                "esdmon: %s has failed %d times in a row and is not used for the rest of this model, so its values are "
                "missing there. Correct it, and read the model again.",
                fault.who,
                fault.in_a_row,
            )
        elif pause != last:
            _log.warning(
                "esdmon: %s has failed %d times in a row and is paused for %d due steps; see monitor.errors.",
                fault.who,
                fault.in_a_row,
                pause,
            )


@final
class Isolated:
    """What `Faults.isolated` returns: a class, since a generator takes several times as long, at each step."""

    __slots__ = ("_faults", "_heals", "_is_timed", "_pauses", "_start", "_step", "_who")

    def __init__(self, faults: Faults, who: str, step: int, *, is_timed: bool, pauses: bool, heals: bool) -> None:
        self._faults, self._who, self._step = faults, who, step
        self._is_timed, self._pauses, self._heals = is_timed, pauses, heals
        self._start = 0.0

    def __enter__(self) -> None:
        if self._is_timed:
            self._start = time.perf_counter()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if error is not None:
            if not isinstance(error, Exception) or self._faults.strict:
                return False
            let_through(error)
            self._faults.record(self._who, self._step, error, pauses=self._pauses)
        elif self._heals:
            self._faults.worked(self._who, self._step)
        if self._is_timed:
            self._faults.took(self._who, self._step, time.perf_counter() - self._start)
        return True
