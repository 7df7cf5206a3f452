"""Close the monitors that a script has left open when the interpreter ends, so that what was read is written."""

import atexit
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    """A monitor."""

    def close(self, timeout: float | None = None) -> None:
        """Close within some seconds."""


_open: "weakref.WeakKeyDictionary[Closable, float]" = weakref.WeakKeyDictionary()


def close_at_exit(monitor: Closable, timeout: float) -> None:
    """Have a monitor closed when the interpreter ends, if it lives until then."""
    _open[monitor] = timeout


def is_closed(monitor: Closable) -> None:
    """Forget a monitor that is closed."""
    _open.pop(monitor, None)


def _close_all() -> None:
    for monitor, timeout in list(_open.items()):
        monitor.close(timeout)


# Before the interpreter waits for all threads of pools, which it does before the functions of atexit.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
