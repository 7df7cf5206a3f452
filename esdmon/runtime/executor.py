"""Where readings are finished: on the spot, or by a thread of its own while training goes on."""

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import Any, Literal, Protocol, TypeAlias, final

from esdmon.isolation import describe
from esdmon.records import Coverage, LayerReport
from esdmon.schedule.budget import Budget

Mode: TypeAlias = Literal["sync", "thread"]
MEMORY = 256 << 20
"""Bytes of copied weights that wait for the thread; a larger matrix is copied when nothing else waits. Our choice."""

Answer: TypeAlias = dict[str, tuple[LayerReport, float]]
"""Readings by matrix, each with the seconds that it took."""


class Source(Protocol):
    """What is read: a model's matrices, by name. `esdmon.runtime.reader.Reader` is one."""

    @property
    def coverage(self) -> Coverage:
        """What is read of the model."""

    def settle(self) -> None:
        """Wait until the device has done what it has to do: that time is the run's, and not of the reading."""

    def refresh(self) -> bool:
        """Find the matrices anew where the model has others; whether it has."""

    def nominal(self) -> dict[str, float]:
        """Seconds of a reading by matrix, up to a factor."""

    def size(self, name: str) -> int:
        """Bytes of a copy."""

    def is_trainable(self, name: str) -> bool:
        """Whether it trains."""

    def look(self, names: Iterable[str]) -> dict[str, float]:
        """‖ΔW‖/‖W‖ since each was marked."""

    def mark(self, name: str) -> float:
        """The same for one, which is compared with what it is now from now on."""

    def fingerprint(self) -> str:
        """The same for the same weights."""

    def begin(self, name: str, step: int, *, moved: float, copy: bool) -> Callable[[], LayerReport]:
        """The first half of a reading; the second is returned."""


@dataclass(frozen=True, slots=True)
class Task:
    """Readings under way."""

    names: tuple[str, ...]
    poll: Callable[[], Answer | None]
    """What they gave; None until they are finished."""
    give_up: Callable[[], Answer]
    """What has come so far, and no more is wanted."""


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
        Thread(target=self._run, name="esdmon", daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Queue a job."""
        future: Future[Any] = Future()
        self._jobs.append((future, job))
        self._wake.set()
        return future

    def close(self) -> None:
        """Cancel what has not begun, and end the thread when the running job is finished."""
        self._is_closed = True
        for future, _ in tuple(self._jobs):
            future.cancel()
        self._wake.set()

    def _run(self) -> None:
        while self._jobs or not self._is_closed:
            # What is to end the thread from outside ends the running job at most: none waits for ever.
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
    """Begins readings; in the mode "thread" they are finished by one thread, in the order of their beginning.

    Its time is taken from the budget second for second, though on idle cores it costs the run nothing: there is no
    telling which are idle. The thread computes with numpy and torch, which let others run meanwhile, and never with
    scipy, which does not.
    """

    def __init__(self, source: Source, budget: Budget, *, mode: Mode = "sync") -> None:
        self._source = source
        self._budget = budget
        self.on_the_spot = mode == "sync"
        """Whether what is begun is finished at once."""
        self._thread: _DaemonThread | None = None
        self._waiting: deque[tuple[Future[Any], int]] = deque()
        self._bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether all that was begun is finished."""
        while self._waiting and self._waiting[0][0].done():
            self._bytes -= self._waiting.popleft()[1]
        return not self._waiting

    def has_room(self, name: str) -> bool:
        """Whether a copy of this matrix may wait besides those that do; where none does, any may."""
        return self.on_the_spot or self.is_idle or self._bytes + self._source.size(name) <= MEMORY

    def begin(self, name: str, step: int, *, moved: float) -> Task:
        """Begin a reading."""
        if self.on_the_spot:
            with self._budget.measured() as cost:
                layer = self._source.begin(name, step, moved=moved, copy=False)()
            answer: Answer = {name: (layer, cost.seconds)}
            return Task((name,), lambda: answer, lambda: answer)
        future = self._submit(_timed, self._source.begin(name, step, moved=moved, copy=True), self._source.size(name))
        return Task((name,), partial(self._poll, name, step, future), partial(_cancel, future))

    def then(self, job: Callable[[], None]) -> None:
        """Have something done when all that was begun so far is finished."""
        if self.on_the_spot:
            job()
        else:
            self._submit(_call, job, 0)

    def _submit(self, how: Callable[[Any], Any], what: Callable[[], Any], size: int) -> Future[Any]:
        if self._thread is None:  # now, and not earlier, so that a run that forks first forks no thread
            self._thread = _DaemonThread()
            weakref.finalize(self, self._thread.close).atexit = False
        future = self._thread.submit(partial(how, what))
        self._waiting.append((future, size))
        self._bytes += size
        return future

    def close(self) -> None:
        """End the thread; what it has not begun is cancelled."""
        if self._thread is not None:
            self._thread.close()

    def _poll(self, name: str, step: int, future: Future[tuple[LayerReport, float]]) -> Answer | None:
        if not future.done():
            return None
        try:
            layer, seconds = future.result()
        except Exception:
            raise  # strict=True
        except BaseException as error:  # noqa: BLE001 -- what ends a thread from outside
            layer, seconds = LayerReport(name, "failed", step, f"the worker was stopped: {describe(error)}"), 0.0
        self._budget.spend(seconds)
        return {name: (layer, seconds)}


def _timed(finish: Callable[[], LayerReport]) -> tuple[LayerReport, float]:
    start = time.perf_counter()
    layer = finish()
    return layer, time.perf_counter() - start


def _call(job: Callable[[], None]) -> None:
    job()


def _cancel(future: Future[tuple[LayerReport, float]]) -> Answer:
    future.cancel()
    return {}
