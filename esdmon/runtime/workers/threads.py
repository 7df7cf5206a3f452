"""Define `Threads`, which runs jobs in threads that do not delay the exit of the process."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread, current_thread
from typing import Any, final


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future[Any]
    run: Callable[[], Any]
    alone: bool
    """True if the job begins when all earlier ones are finished, and no other job runs beside it."""


@final
class Threads:
    """Run jobs, in the order in which they were submitted, in as many threads at once as are allowed.

    At its exit the interpreter joins the threads of a ThreadPoolExecutor, however long their computation takes. It does
    not wait for a daemon thread.

    Args:
        prepare: called in each thread before its first job.
        allowed: returns how many jobs may run at once now.
        interrupt: called when the threads are closed; ends running jobs if possible.
    """

    def __init__(
        self,
        prepare: Callable[[], object] = lambda: None,
        allowed: Callable[[], int] = lambda: 1,
        interrupt: Callable[[], object] = lambda: None,
    ) -> None:
        self._prepare = prepare
        self._allowed = allowed
        self._interrupt = interrupt
        self._jobs: deque[_Job] = deque()
        self._changed = Condition()
        self._threads: dict[Thread, list[_Job]] = {}
        """Each thread with its running job, or with none."""
        self._is_closed = False

    @property
    def running(self) -> int:
        """Return how many jobs run."""
        return sum(map(len, tuple(self._threads.values())))

    def submit(self, run: Callable[[], Any], *, alone: bool = False) -> Future[Any]:
        """Queue a job; an `alone` job begins when all earlier ones are finished, and no other job runs beside it.

        Raises:
            RuntimeError: if there is no thread, and none can be started.
        """
        job = _Job(Future(), run, alone)
        with self._changed:
            self._jobs.append(job)
        try:
            self.wake()
        except RuntimeError:
            with self._changed:
                self._jobs.remove(job)
            raise
        return job.future

    def wake(self) -> None:
        """Begin allowed jobs; called at each training step, so that threads without a job can sleep.

        Raises:
            RuntimeError: if there is no thread, and none can be started.
        """
        if not self._jobs:
            return
        with self._changed:
            while len(self._threads) < min(self._allowed(), self.running + len(self._jobs)):
                own: list[_Job] = []
                thread = Thread(target=self._work, args=(own,), name=f"esdmon-{len(self._threads)}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # such as at the limit of a control group
                    if not self._threads:
                        raise
                    break
                self._threads[thread] = own  # not before; the thread waits for the lock
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel the jobs that have not begun, and end each thread when its job is finished."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        self._interrupt()

    def join(self, timeout: float) -> None:
        """Close, and wait until the threads have ended, at most this many seconds."""
        self.close()
        until = time.monotonic() + timeout
        for thread in tuple(self._threads):
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self, own: list[_Job]) -> None:
        # An exception that is raised in a thread from outside ends the running job. Between two jobs it ends the
        # thread, which `wake` then replaces.
        try:
            with suppress(BaseException):
                self._run_all(own)
        finally:
            self._end(own, SystemExit())
            with self._changed:
                del self._threads[current_thread()]

    def _run_all(self, own: list[_Job]) -> None:
        with suppress(Exception):
            self._prepare()
        is_open = True
        while is_open:
            with suppress(BaseException):
                is_open = self._run_next(own)

    def _run_next(self, own: list[_Job]) -> bool:
        """Run the next job; return False if the threads are closed. A waiting thread holds no job."""
        self._end(own, SystemExit())  # there is one if an exception from outside came before its end
        if not self._begin(own):
            return False
        (job,) = own
        error: BaseException | None = None
        try:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(job.run())
        except BaseException as raised:  # noqa: BLE001
            error = raised
        self._end(own, error)
        return True

    def _begin(self, own: list[_Job]) -> bool:
        """Wait for a job that may begin, and take it; return False if the threads are closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._may_begin())
            if self._is_closed:
                return False
            own.append(self._jobs[0])
            self._jobs.popleft()
            return True

    def _may_begin(self) -> bool:
        if not self._jobs or any(job.alone for own in self._threads.values() for job in own):
            return False
        return self.running == 0 if self._jobs[0].alone else self.running < self._allowed()

    def _end(self, own: list[_Job], error: BaseException | None) -> None:
        """End the job of a thread: with an error, unless it has a result or was cancelled."""
        for job in own:
            if error is not None and not job.future.done():
                job.future.set_exception(error)
        with self._changed:
            own.clear()
            self._changed.notify_all()
