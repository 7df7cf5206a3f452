"""Close monitors that a script has left open, and end running readings, when the interpreter exits.

A reading that still runs at exit can abort the process: its thread is inside C++ code of torch, and Python ends such a
thread when it requests the interpreter's lock. So the exit waits some seconds for the thread.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from typing import Protocol

from esdmon.limits import Limits


class Closable(Protocol):
    """A monitor that can be closed."""

    def close(self, timeout: float | None = None, *, is_complete: bool = True) -> None:
        """Close within some seconds; `is_complete` is False if the training was interrupted."""


class Joinable(Protocol):
    """Threads of readings that can be ended."""

    def join(self, timeout: float) -> None:
        """End the threads, and wait until they have ended, for some seconds at most."""


_monitors: "weakref.WeakKeyDictionary[Closable, float]" = weakref.WeakKeyDictionary()
_threads: "weakref.WeakSet[Joinable]" = weakref.WeakSet()


def close_at_exit(monitor: Closable, timeout: float) -> None:
    """Register a monitor to be closed when the interpreter exits, if it still exists then."""
    _monitors[monitor] = timeout


def forget_closed(monitor: Closable) -> None:
    """Unregister a closed monitor."""
    _monitors.pop(monitor, None)


def join_at_exit(thread: Joinable) -> None:
    """Make the exit of the interpreter wait for a thread, at most 5 seconds."""
    _threads.add(thread)


def _end() -> None:
    until = time.monotonic() + Limits().exit_seconds
    is_complete = not any(hasattr(sys, name) for name in ("last_exc", "last_type"))  # no exception has ended the script
    for monitor, timeout in list(_monitors.items()):
        monitor.close(timeout, is_complete=is_complete)
    for thread in list(_threads):
        thread.join(max(0.0, until - time.monotonic()))


def _forget() -> None:
    """Clear the registrations in a forked process: monitors and threads of the parent do not exist here."""
    _monitors.clear()
    _threads.clear()


# Before the interpreter waits for all threads of pools, which it does before the functions of atexit.
getattr(threading, "_register_atexit", atexit.register)(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
