"""Define `Executor`, which finishes readings in the hook, or in threads or processes while training continues.

If no core is idle, a reading in a thread is charged to the budget in full. A GPU computes the eigenvalues of a large
matrix in a small part of the time. So in that case the GPU computes them in the hook, which waits for the result, and a
thread finishes the reading.
"""

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, TypeAlias, final, get_args

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.workers.at_exit import join_at_exit
from esdmon.runtime.workers.processes import Processes
from esdmon.runtime.workers.source import Answer, Ratio, Source, Task
from esdmon.runtime.workers.threads import Threads
from esdmon.schedule.budget import Budget
from esdmon.schedule.workers import Workers

Mode: TypeAlias = Literal["sync", "thread", "process", "device"]
MODES: tuple[Mode, ...] = get_args(Mode)


@final
class Executor:
    """Begin readings, and finish them in a thread, or several on idle cores, in the order begun; "sync" has no thread.

    A thread's time is charged to the budget: second for second, or on idle cores by what the steps lose. The threads
    compute with numpy and torch, which release the interpreter's lock, and never with scipy, which does not; in the
    mode "process" each hands most of a reading to a process of its own, and waits.

    Args:
        source: the matrices.
        budget: charged with the thread's time.
        mode: "sync" finishes a reading when it is begun; "device" never reads on idle cores.
        memory: bytes of copied weights that may wait for the threads.
        prepare: called in each thread before its first job.
        workers: sets how many threads read; None for one.
        processes: the worker processes of the mode "process".
    """

    def __init__(
        self,
        source: Source,
        budget: Budget,
        *,
        mode: Mode,
        memory: int = Limits().copied_bytes,
        prepare: Callable[[], object] = lambda: None,
        workers: Workers | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._source = source
        self.budget = budget
        """Is charged with the time of the readings."""
        self._memory = memory
        self._prepare = prepare
        self._workers = workers
        self.clock = time.perf_counter if processes is None else processes.clock
        """Returns the seconds of the calling thread; waiting for a process counts as the CPU time of that process."""
        self._interrupt = (lambda: None) if processes is None else processes.close
        self.on_the_spot = mode == "sync"
        """True if a reading is finished when it is begun."""
        self._is_device_only = mode == "device"
        self.on_device: frozenset[str] = frozenset()
        """The matrices whose eigenvalues a GPU computes at this step, in the hook."""
        self._threads: Threads | None = None
        self._waiting: deque[tuple[Future[Any], int]] = deque()

    def is_idle(self) -> bool:
        """Return whether all begun readings are finished."""
        return not self._unfinished()

    @property
    def may_use_device(self) -> bool:
        """Return whether a GPU is to compute eigenvalues: no thread may read on an idle core."""
        return self._is_device_only or (self._workers is not None and self._workers.has_no_core)

    @property
    def reads_between(self) -> bool:
        """Return whether readings without room at a scheduled step may begin at later steps."""
        return bool(self.on_device) or (self._workers is not None and self._workers.count > 0)

    @property
    def pauses(self) -> bool:
        """Return whether there are times at which free threads begin no reading."""
        return self._workers is not None

    def end_within(self, blocks: int) -> None:
        """Set the number of blocks of steps in which the readings of all ranks end, before steps without readings."""
        if self._workers is not None:
            self._workers.ending = max(1, blocks)

    def advance(self, *, waiting: bool = False) -> None:
        """Count a step of the training, and begin allowed readings.

        Args:
            waiting: True if the training waits for the readings, and takes no step.
        """
        if self._workers is not None and waiting:
            self._workers.wait()
        elif self._workers is not None:
            self.budget.lose(self._workers.step(is_busy=self._threads is not None and self._threads.running > 0))
        if self._threads is not None:
            self._threads.wake()

    def has_room(self, name: str) -> bool:
        """Return whether a copy of this matrix may be queued; if the queue is empty, any copy may."""
        if self.on_the_spot or (name in self.on_device and self.budget.share is None):
            return True
        waiting = self._unfinished()
        return not waiting or sum(size for _, size in waiting) + self._source.size(name) <= self._memory

    def begin(self, name: str, step: int, *, moved: Ratio) -> Task:
        """Begin a reading of a matrix, which has moved by ‖ΔW‖/‖W‖ = `moved()` since the reading before."""
        if self.on_the_spot:
            with self.budget.measured() as cost:
                layer = self._source.begin(name, step, moved=moved, copy=False)()
            answer: Answer = {name: (layer, cost.seconds)}
            return Task((name,), lambda: answer, lambda: answer)
        finish, in_hook = self._solve(name, step, moved) if name in self.on_device else (None, 0.0)
        if finish is None:
            finish = self._source.begin(name, step, moved=moved, copy=True)
        future = self._submit(partial(_timed, name, finish, self.clock), self._source.size(name))
        return self._task((name,), step, future, in_hook)

    def _solve(self, name: str, step: int, moved: Ratio) -> tuple[Callable[[], LayerReport] | None, float]:
        """Compute eigenvalues on the GPU; return a function that finishes the reading, or None, and the seconds."""
        if self._workers is not None:
            self._workers.drop()
        with self.budget.measured() as cost:
            finish = self._source.solve(name, step, moved=moved)
        return finish, 0.0 if finish is None else cost.seconds

    def begin_later(self, names: Sequence[str], step: int, job: Callable[[], Answer], size: int) -> Task:
        """Let a thread finish several readings that wait for other ranks, in any mode.

        Args:
            names: of the matrices.
            step: optimizer steps taken.
            job: finishes them.
            size: bytes of copies that it holds.
        """
        return self._task(tuple(names), step, self._submit(job, size))

    def then(self, job: Callable[[], None]) -> None:
        """Call a function when all readings begun so far are finished."""
        if self.on_the_spot and self.is_idle():
            job()
        else:
            self._submit(job, 0, alone=True)

    def close(self) -> None:
        """End the threads, and cancel readings that have not begun."""
        if self._threads is not None:
            self._threads.close()

    def _unfinished(self) -> deque[tuple[Future[Any], int]]:
        """Return the queue, after removing finished readings at its head."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return self._waiting

    def _submit(self, job: Callable[[], Any], size: int, *, alone: bool = False) -> Future[Any]:
        if self._threads is None:  # not earlier, so that a run that forks before has no thread
            # The threads must not reference this object, which holds the model; they end with it.
            self._threads = Threads(self._prepare, partial(_allowed, self._workers), self._interrupt)
            join_at_exit(self._threads)
            weakref.finalize(self, self._threads.close).atexit = False
        future = self._threads.submit(job, alone=alone)
        self._unfinished().append((future, size))  # finished readings must not accumulate
        return future

    def _task(self, names: tuple[str, ...], step: int, future: Future[Answer], in_hook: float = 0.0) -> Task:
        return Task(names, partial(self._poll, names, step, future, in_hook), partial(_cancel, future), in_hook)

    def _poll(self, names: Sequence[str], step: int, future: Future[Answer], in_hook: float) -> Answer | None:
        """Return finished readings, each with its seconds in the hook, which are already charged.

        Raises:
            Exception: an error of a reading, only with `strict=True`.
        """
        if not future.done():
            return None
        error = future.exception()
        if error is None:
            answer = future.result()
        elif isinstance(error, Exception):
            raise error
        else:  # such as SystemExit, raised in the thread from outside
            why = f"the worker was stopped: {describe(error)}"
            answer = {name: (LayerReport(name, "failed", step, why), 0.0) for name in names}
        self.budget.read(sum(seconds for _, seconds in answer.values()))
        return {name: (layer, seconds + in_hook) for name, (layer, seconds) in answer.items()}


def _allowed(workers: Workers | None) -> int:
    if workers is None:
        return 1
    return 0 if workers.is_paused else max(1, workers.count)


def _timed(name: str, finish: Callable[[], LayerReport], clock: Callable[[], float]) -> Answer:
    start = clock()
    layer = finish()
    return {name: (layer, clock() - start)}


def _cancel(future: Future[Any]) -> Answer:
    future.cancel()
    return {}
