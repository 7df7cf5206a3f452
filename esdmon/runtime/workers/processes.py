"""Define `Processes`: worker processes that finish readings, one for each thread that requests one.

A thread takes the interpreter's lock hundreds of times in a reading, and a training with many small operations waits
for the lock each time. A process takes no lock of the training, and can be ended during a computation.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import final

from esdmon.runtime.workers.job import Outcome, WorkerJob
from esdmon.runtime.workers.worker import Worker, WorkerError
from esdmon.spectrum.margins import Array

_log = logging.getLogger("esdmon")
_LIVES = 2  # processes that may end unexpectedly before threads read instead; our choice


@final
class Processes:
    """Provide a worker process to each thread; if there is none, log this once, and let threads read.

    Args:
        start: starts a process.
    """

    def __init__(self, start: Callable[[], Worker] = Worker) -> None:
        self._start = start
        self._own = _Own()
        self._lock = threading.RLock()  # the garbage collector may call `close` in a thread that holds the lock
        self._workers: list[Worker] = []
        self._lost = 0
        self._is_closed = False
        self.are_usable = True
        """True if jobs run in processes."""

    def are_there(self) -> bool:
        """Return whether the calling thread has a process; start it at the first call.

        Raises:
            SystemExit: after `close`.
        """
        return self._worker() is not None

    def clock(self) -> float:
        """Return the seconds of the calling thread; waiting for its process counts as the CPU time of that process."""
        return time.perf_counter() - self._own.waited + self._own.used

    def run(self, job: WorkerJob, stack: Array) -> Outcome | None:
        """Run a job in the process of the calling thread; return None if there is no process.

        Raises:
            WorkerError: if the process has ended before the job was done.
            OSError: if there is no memory for the array.
            SystemExit: if `close` was called meanwhile.
        """
        worker = self._worker()
        if worker is None:
            return None
        since = time.perf_counter()
        try:
            outcome = worker.run(job, stack)
        except WorkerError as error:
            self._lose(worker, error)
            raise
        self._own.waited += time.perf_counter() - since
        self._own.used += outcome.cpu_seconds - worker.cpu_seconds
        worker.cpu_seconds = outcome.cpu_seconds
        return outcome

    def close(self) -> None:
        """End all processes at once."""
        self._is_closed = True
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()

    def _worker(self) -> Worker | None:
        """Return the process of the calling thread, and start it at the first call.

        Raises:
            SystemExit: after `close`.
        """
        if self._is_closed:
            raise SystemExit("the monitor is closed")
        if not self.are_usable:
            self._drop(self._own.worker)
        elif self._own.worker is None:
            since = time.perf_counter()
            try:
                self._own.worker = worker = self._start()
            except Exception as error:  # noqa: BLE001 -- no memory, no descriptor, no such program
                self._give_up(f"cannot be started ({error})")
            else:
                with self._lock:
                    self._workers.append(worker)
                if self._is_closed:
                    self.close()
            self._own.waited += time.perf_counter() - since
        return self._own.worker

    def _lose(self, worker: Worker, error: WorkerError) -> None:
        if self._is_closed:
            raise SystemExit("the monitor is closed")
        self._drop(worker)
        with self._lock:
            self._lost += 1
            is_last = self._lost == _LIVES
        if is_last:
            self._give_up(f"have ended {_LIVES} times, the last time since {error}")

    def _drop(self, worker: Worker | None) -> None:
        self._own.worker = None
        if worker is not None:
            with self._lock, suppress(ValueError):
                self._workers.remove(worker)
            worker.close()

    def _give_up(self, why: str) -> None:
        if self.are_usable:
            self.are_usable = False
            _log.warning(
                "esdmon: worker processes %s. From now on threads of this process read in their place. Where memory is "
                "short, use fewer workers, or leave out the largest matrices with max_eigenvalues=.",
                why,
            )


class _Own(threading.local):
    """The state of one thread."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.waited = 0.0
        self.used = 0.0
