"""Define `Pool`, which reads the matrices of a model once, in worker processes if these save time."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import final

from esdmon.errors import InputError
from esdmon.records import LayerReport
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.workers.cpus import cores, ranks_of_host
from esdmon.runtime.workers.memory import available_bytes
from esdmon.runtime.workers.processes import Processes
from esdmon.runtime.workers.worker import Worker, why_not
from esdmon.spectrum.lapack import in_one_thread
from esdmon.weights import n_parameters, nominal_seconds

_WORTH = 2.0  # smallest estimated seconds of reading for which a process is started, which takes 0.5 s; our choice
# Measured for a 1500 × 1500 matrix: 9 bytes per element in float32, 17 if it is solved in float64, and 67 with all
# measures, in addition to the 63 MB of a process that has read a small matrix, and to copies in this process.
_HELD = 32  # bytes per element of a weight for a reading, here and in a process, with a margin; our choice
_HELD_MORE = 96  # the same if a measure needs more than eigenvalues; our choice
_PROCESS = 70e6  # bytes of a process without a weight; our choice
_SHARE = 0.5  # largest part of the available memory that is used; our choice
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@final
class Pool:
    """Read matrices in this process, or in worker processes that use one core each.

    Args:
        workers: number of processes; 1 for a thread instead of processes, "auto" for a number by cores, memory and
            work.

    Raises:
        InputError: for any other value.
    """

    def __init__(self, workers: str | int) -> None:
        if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            msg = f"workers= must be 'auto', or a number of worker processes, 1 or more; got {workers!r}"
            raise InputError(msg)
        self._workers = workers
        self._count = 0
        """Number of processes that read; 1 for this process, 0 before the first reading. Later readings use the same
        number."""
        self._threads: ThreadPoolExecutor | None = None
        self._turn = Lock()
        self.processes = Processes(partial(Worker, is_idle=False))
        """The worker processes of the reader; none is started before the first reading."""

    def read(self, reader: Reader, names: Iterable[str], step: int) -> Iterator[LayerReport]:
        """Read matrices, and yield each reading when it is finished; the order may differ."""
        names = list(names)
        if names and not self._count:
            self._count = self._count_for(reader, names)
            self.processes.are_usable = self._count > 1
        if self._count > 1:
            return self._read_beside(reader, names, step)
        # A single matrix uses all threads of the BLAS; with several matrices, more cores serve more processes.
        is_threaded = bool(why_not()) or (self._workers == "auto" and len(names) == 1)
        return (_read_here(reader, name, step, is_threaded=is_threaded) for name in names)

    def close(self) -> None:
        """End the processes at once."""
        self.processes.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _read_beside(self, reader: Reader, names: Iterable[str], step: int) -> Iterator[LayerReport]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="esdmon-reading")
        pending: set[Future[LayerReport]] = set()
        for name in _costliest_first(reader, names):
            if len(pending) > self._count:  # one copy more than processes, so that none waits for the next one
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
            begun = reader.begin(name, step, moved=reader.mark(name), copy=True)
            reader.advance(wait=True)  # only this thread may ask a device whether the copy has arrived
            pending.add(self._threads.submit(self._finish, begun))
        yield from (each.result() for each in as_completed(pending))

    def _finish(self, begun: Callable[[], LayerReport]) -> LayerReport:
        """Let a process finish a reading; if there is none any more, finish readings here, one after another."""
        if self.processes.are_there():
            return begun()
        with self._turn, in_one_thread():
            return begun()

    def _count_for(self, reader: Reader, names: list[str]) -> int:
        """Return how many processes read; 1 for this one."""
        if why_not():
            return 1
        if isinstance(self._workers, int):
            return max(1, min(self._workers, len(names)))
        known = set(names)
        matrices = [matrix for matrix in reader.matrices if matrix.name in known and not matrix.unreadable]
        largest = max(map(n_parameters, matrices), default=1)
        held = _PROCESS + (_HELD_MORE if reader.needs_more else _HELD) * largest
        memory = _SHARE * available_bytes() / ranks_of_host()
        return max(1, int(min(_cores(), len(names), sum(map(nominal_seconds, matrices)) / _WORTH, memory / held)))


def _costliest_first(reader: Reader, names: Iterable[str]) -> list[str]:
    """Return the names by their estimated seconds, so that at the end no process computes a large matrix alone."""
    seconds = reader.nominal()
    return sorted(names, key=lambda name: -seconds[name])  # stable for equal ones


def _read_here(reader: Reader, name: str, step: int, *, is_threaded: bool) -> LayerReport:
    with nullcontext() if is_threaded else in_one_thread():
        return reader.read_one(name, step)


def _cores() -> int:
    """Return the cores for this process, no more than the threads that its environment allows."""
    given = (os.environ.get(name, "").partition(",")[0] for name in _THREADS)
    return min([cores(), *(int(value) for value in given if value.isdecimal() and int(value) > 0)])
