"""`Threads`: jobs in threads that do not hold up the end of the process."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, final


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future[Any]
    run: Callable[[], Any]
    alone: bool
    """Whether it begins when all before it are finished, and no other runs beside it."""


@final
class Threads:
    """Run jobs, in the order in which they were submitted, in as many threads at once as are allowed.

    The interpreter joins the threads of a ThreadPoolExecutor before it ends, however long the solve in them takes. A
    daemon thread is left where it is.

    Args:
        prepare: called in each thread before its first job.
        allowed: returns how many jobs may run at once now.
        interrupt: called when the threads are closed: ends the jobs that run, where something can.
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
        self._threads: list[Thread] = []
        self._running = 0
        self._is_one_alone = False
        self._is_closed = False

    @property
    def running(self) -> int:
        """Return how many jobs run."""
        return self._running

    def submit(self, run: Callable[[], Any], *, alone: bool = False) -> Future[Any]:
        """Queue a job; one that is `alone` begins when all before it are finished, and none runs beside it."""
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.append(_Job(future, run, alone))
        self.wake()
        return future

    def wake(self) -> None:
        """Begin what is allowed by now; at each step of a training, so that threads without a job sleep on."""
        if not self._jobs:
            return
        with self._changed:
            while len(self._threads) < min(self._allowed(), self._running + len(self._jobs)):
                thread = Thread(target=self._work, name=f"esdmon-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
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
        """Close, and wait until the threads have ended, for so many seconds at most."""
        self.close()
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        with suppress(Exception):
            self._prepare()
        while True:
            # An exception that is raised in the thread from outside ends the running job at most, never the thread.
            with suppress(BaseException):
                if not self._run_next():
                    return

    def _run_next(self) -> bool:
        """Run the next job; return False where the threads are closed. A thread that waits holds no job."""
        job = self._next()
        if job is not None:
            self._run(job)
        return job is not None

    def _next(self) -> _Job | None:
        """Wait for a job that may begin; None where the threads are closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._may_begin())
            if self._is_closed:
                return None
            job = self._jobs.popleft()
            self._running += 1
            self._is_one_alone = job.alone
            return job

    def _may_begin(self) -> bool:
        if not self._jobs or self._is_one_alone:
            return False
        return self._running == 0 if self._jobs[0].alone else self._running < self._allowed()

    def _run(self, job: _Job) -> None:
        try:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(job.run())
        except BaseException as error:  # noqa: BLE001
            if not job.future.done():
                job.future.set_exception(error)
        finally:
            with self._changed:
                self._running -= 1
                self._is_one_alone = False
                self._changed.notify_all()
