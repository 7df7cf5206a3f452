"""Define `Worker`, which starts a process that finishes readings, sends it jobs, and ends it.

The process is not forked from the training. It is a new Python interpreter that loads neither torch nor the user's
script. It gets the weight through shared memory.
"""

import mmap
import os
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Pipe
from typing import final

import numpy as np

from esdmon.isolation import describe
from esdmon.runtime.workers.job import Order, Outcome, WorkerJob
from esdmon.spectrum.margins import Array

_PROGRAM = "esdmon.runtime.workers.program"
_IDLE = "idle"  # argument that gives a worker process the lowest priority
_START_SECONDS = 60.0  # time limit for loading numpy and scipy, also from the file system of a cluster; our choice
_CHECK_SECONDS = 1.0  # between checks whether a process is alive: a fork may keep its connection open; our choice
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """Raised if a worker process has ended, or cannot be started."""


def why_not() -> str:
    """Return the reason why no worker process can be started here; empty if it can."""
    if not hasattr(os, "memfd_create"):
        return f"{sys.platform} has no memory that only two processes share"
    if not sys.executable or getattr(sys, "frozen", False):
        return "this program is no Python interpreter that could be started again"
    return ""


@final
class Worker:
    """A process that finishes readings, one at a time.

    Args:
        is_idle: whether it has the lowest priority.

    Raises:
        WorkerError: if it does not start.
    """

    def __init__(self, *, is_idle: bool = True) -> None:
        self._lock = threading.Lock()
        self._is_ending = self._is_closed = False
        self._connection, theirs = Pipe()
        self._memory = os.memfd_create("esdmon")
        try:
            self._process = _started(theirs.fileno(), self._memory, is_idle=is_idle)
        except Exception as error:
            os.close(self._memory)
            self._connection.close()
            raise WorkerError(describe(error)) from error
        finally:
            theirs.close()
        _alive.add(self)
        self.cpu_seconds = self._first_message()

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def run(self, job: WorkerJob, stack: Array) -> Outcome:
        """Run a job.

        Raises:
            WorkerError: if the process has ended.
            OSError: if there is no memory for the array.
        """
        try:
            with self._lock:
                if self._is_ending or self._is_closed:
                    raise WorkerError("the worker process is closed")
                order = Order(job, stack.dtype.name, stack.shape)
                try:
                    os.posix_fallocate(self._memory, 0, stack.nbytes)  # else a full memory would end this process
                    with mmap.mmap(self._memory, stack.nbytes) as shared:
                        np.copyto(order.array_in(shared), stack)
                    return self._exchange(order)
                finally:
                    os.ftruncate(self._memory, 0)
        finally:
            self._let_go()

    def close(self) -> None:
        """End the process at once, also during a job. A thread that waits for it gets a `WorkerError`."""
        if self._is_closed:
            return
        self._is_ending = True
        self._process.kill()
        self._let_go()

    def _let_go(self) -> None:
        """Close the resources of an ended process; if a thread uses them, it does this when it has finished.

        This may be the calling thread, since the garbage collector, which closes an unreferenced monitor, runs in any
        thread.
        """
        if self._is_ending and self._lock.acquire(blocking=False):
            try:
                if not self._is_closed:
                    self._is_closed = True
                    self._connection.close()
                    os.close(self._memory)
                    self._process.wait()
            finally:
                self._lock.release()

    def abandon(self) -> None:
        """Close the resources that a forked process has inherited; the worker continues to serve the parent."""
        if self._is_closed:  # then its descriptors may be reused
            return
        self._is_closed = True
        self._lock = threading.Lock()  # the thread that may hold the old lock does not exist there
        self._connection.close()
        os.close(self._memory)

    def _first_message(self) -> float:
        try:
            if self._connection.poll(_START_SECONDS):
                seconds: float = self._connection.recv()
                return seconds
        except (EOFError, OSError):
            how = self._how_it_ended()
        else:
            how = f"has not started in {_START_SECONDS:g} s"
        self.close()
        raise WorkerError(f"`{sys.executable} -m {_PROGRAM}` {how}")

    def _exchange(self, order: Order) -> Outcome:
        try:
            self._connection.send(order)
            is_there = self._connection.poll(_CHECK_SECONDS)
            while not is_there and self._process.poll() is None:
                is_there = self._connection.poll(_CHECK_SECONDS)
            outcome: Outcome | None = self._connection.recv() if is_there else None
        except (EOFError, OSError):
            outcome = None
        if outcome is None:
            raise WorkerError(f"the worker process that read it {self._how_it_ended()}")
        return outcome

    def _how_it_ended(self) -> str:
        self._process.kill()
        code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was ended by signal {-code}" + (", perhaps by the kernel for want of memory" if code == -9 else "")


def _started(connection: int, memory: int, *, is_idle: bool) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)  # noqa: PTH100 -- may be a zip file
    return subprocess.Popen(  # noqa: S603 -- this Python, and a module of ours
        [sys.executable, "-P", "-m", _PROGRAM, str(connection), str(memory), *([_IDLE] if is_idle else [])],
        env=os.environ | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        pass_fds=(connection, memory),
        process_group=0,  # Ctrl-C is for the training; a session of its own might get as much time as the training's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


_alive: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def _abandon_all() -> None:
    for worker in list(_alive):
        worker.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
