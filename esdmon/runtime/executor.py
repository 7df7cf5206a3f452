"""`Executor`: finish readings on the spot, or in one background thread while training goes on."""

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from threading import Event, Thread
from typing import Any, Literal, TypeAlias, final

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.at_exit import join_at_exit
from esdmon.runtime.source import Answer, Source, Task
from esdmon.schedule.budget import Budget

Mode: TypeAlias = Literal["sync", "thread"]


@final
class _DaemonThread:
    """Run jobs one after another in a thread that does not hold up the end of the process.

    The interpreter joins the threads of a ThreadPoolExecutor before it ends, however long the solve in them takes. A
    daemon thread is left where it is.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = Event()
        self._is_closed = False
        self._thread = Thread(target=self._run, name="esdmon", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Queue a job."""
        future: Future[Any] = Future()
        self._jobs.append((future, job))
        self._wake.set()
        return future

    def close(self) -> None:
        """Cancel the jobs that have not begun, and end the thread when the running one is finished."""
        self._is_closed = True
        for future, _ in tuple(self._jobs):
            future.cancel()
        self._wake.set()

    def join(self, timeout: float) -> None:
        """Close, and wait until the thread has ended, for so many seconds at most."""
        self.close()
        self._thread.join(timeout)

    def _run(self) -> None:
        while self._jobs or not self._is_closed:
            # An exception that is raised in the thread from outside ends the running job at most, never the thread.
            with suppress(BaseException):
                if self._jobs:
                    self._run_next(*self._jobs[0])
                else:
                    self._wake.wait()
                    self._wake.clear()

    def _run_next(self, future: Future[Any], job: Callable[[], Any]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(job())
        except BaseException as error:  # noqa: BLE001
            if not future.done():
                future.set_exception(error)
        finally:
            self._jobs.popleft()


@final
class Executor:
    """Begin readings; in the mode "thread" one thread finishes them, in the order in which they were begun.

    The thread's time is charged to the budget second for second, though on idle cores it costs the run nothing: which
    cores are idle is not known. The thread computes with numpy and torch, which release the interpreter's lock, and
    never with scipy, which does not.

    Args:
        source: the matrices.
        budget: charged with the thread's time.
        mode: "sync" finishes a reading when it is begun.
        memory: bytes of copied weights that may wait for the thread.
    """

    def __init__(
        self, source: Source, budget: Budget, *, mode: Mode = "sync", memory: int = Limits().copied_bytes
    ) -> None:
        self._source = source
        self._budget = budget
        self._memory = memory
        self.on_the_spot = mode == "sync"
        """True where a reading is finished when it is begun."""
        self._thread: _DaemonThread | None = None
        self._waiting: deque[tuple[Future[Any], int]] = deque()

    def is_idle(self) -> bool:
        """Return whether all that was begun is finished."""
        return not self._unfinished()

    def has_room(self, name: str) -> bool:
        """Return whether a copy of this matrix may be queued; any may where the queue is empty."""
        if self.on_the_spot:
            return True
        waiting = self._unfinished()
        return not waiting or sum(size for _, size in waiting) + self._source.size(name) <= self._memory

    def begin(self, name: str, step: int, *, moved: float) -> Task:
        """Begin a reading of a matrix, which has moved by ‖ΔW‖/‖W‖ = `moved` since the reading before."""
        if self.on_the_spot:
            with self._budget.measured() as cost:
                layer = self._source.begin(name, step, moved=moved, copy=False)()
            answer: Answer = {name: (layer, cost.seconds)}
            return Task((name,), lambda: answer, lambda: answer)
        finish = self._source.begin(name, step, moved=moved, copy=True)
        future = self._submit(partial(_timed, finish), self._source.size(name))
        return Task((name,), partial(self._poll, name, step, future), partial(_cancel, future))

    def begin_later(self, names: Sequence[str], step: int, job: Callable[[], Answer], size: int) -> Task:
        """Have the thread finish several readings, in either mode: those that wait for other ranks.

        Args:
            names: of the matrices.
            step: optimizer steps taken.
            job: finishes them.
            size: bytes of copies that it holds.
        """
        future = self._submit(job, size)
        return Task(tuple(names), partial(self._poll_job, names, step, future), partial(_cancel, future))

    def then(self, job: Callable[[], None]) -> None:
        """Call a function when all that was begun so far is finished."""
        if self.on_the_spot and self.is_idle():
            job()
        else:
            self._submit(job, 0)

    def close(self) -> None:
        """End the thread; what it has not begun is cancelled."""
        if self._thread is not None:
            self._thread.close()

    def _unfinished(self) -> deque[tuple[Future[Any], int]]:
        """Return the queue, with what is finished removed: jobs are finished in order."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return self._waiting

    def _submit(self, job: Callable[[], Any], size: int) -> Future[Any]:
        if self._thread is None:  # now, and not earlier, so that a run that forks first forks no thread
            self._thread = _DaemonThread()
            join_at_exit(self._thread)
            weakref.finalize(self, self._thread.close).atexit = False
        future = self._thread.submit(job)
        self._unfinished().append((future, size))  # what is finished must not pile up
        return future

    def _poll(self, name: str, step: int, future: Future[tuple[LayerReport, float]]) -> Answer | None:
        """Return a reading that is finished.

        Raises:
            Exception: of the reading, which it lets through for `strict=True` only.
        """
        return self._poll_job([name], step, future, lambda result: {name: result})

    def _poll_job(
        self, names: Sequence[str], step: int, future: Future[Any], as_answer: Callable[[Any], Answer] = dict
    ) -> Answer | None:
        if not future.done():
            return None
        error = future.exception()
        if error is None:
            answer = as_answer(future.result())
        elif isinstance(error, Exception):
            raise error
        else:  # SystemExit, say, raised in the thread from outside
            why = f"the worker was stopped: {describe(error)}"
            answer = {name: (LayerReport(name, "failed", step, why), 0.0) for name in names}
        self._budget.spend(sum(seconds for _, seconds in answer.values()))
        return answer


def _timed(finish: Callable[[], LayerReport]) -> tuple[LayerReport, float]:
    start = time.perf_counter()
    layer = finish()
    return layer, time.perf_counter() - start


def _cancel(future: Future[Any]) -> Answer:
    future.cancel()
    return {}
