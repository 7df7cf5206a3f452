"""What happens when the interpreter ends: monitors that a script has left open are closed, running readings end.

A reading that runs while the interpreter is torn down can abort the process: its thread is inside C++ code of torch,
and Python ends a thread there that asks for the interpreter's lock. So the end waits for it, for some seconds.
"""

import atexit
import threading
import time
import weakref
from typing import Protocol

from esdmon.limits import Limits

_POLL = 1e-3


class Closable(Protocol):
    """A monitor."""

    def close(self, timeout: float | None = None) -> None:
        """Close within some seconds."""


class Busy(Protocol):
    """A thread of readings."""

    def is_busy(self) -> bool:
        """Return whether a reading runs."""


_monitors: "weakref.WeakKeyDictionary[Closable, float]" = weakref.WeakKeyDictionary()
_threads: "weakref.WeakSet[Busy]" = weakref.WeakSet()


def close_at_exit(monitor: Closable, timeout: float) -> None:
    """Have a monitor closed when the interpreter ends, if it lives until then."""
    _monitors[monitor] = timeout


def is_closed(monitor: Closable) -> None:
    """Forget a monitor that is closed."""
    _monitors.pop(monitor, None)


def wait_at_exit(thread: Busy) -> None:
    """Have the end of the interpreter wait for the reading that runs in a thread, for 5 seconds at most."""
    _threads.add(thread)


def _end() -> None:
    until = time.monotonic() + Limits().exit_seconds
    for monitor, timeout in list(_monitors.items()):
        monitor.close(timeout)
    while any(thread.is_busy() for thread in list(_threads)) and time.monotonic() < until:
        time.sleep(_POLL)


# Before the interpreter waits for all threads of pools, which it does before the functions of atexit.
getattr(threading, "_register_atexit", atexit.register)(_end)
