"""`Pool`: read the matrices of a model once, in several worker processes where that is worth their start."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import nullcontext
from functools import partial
from typing import final

from esdmon.errors import InputError
from esdmon.records import LayerReport
from esdmon.runtime.cpus import cores
from esdmon.runtime.memory import available_bytes
from esdmon.runtime.processes import Processes, Worker, why_not
from esdmon.runtime.reader import Reader
from esdmon.spectrum.lapack import in_one_thread
from esdmon.weights import n_parameters, nominal_seconds

_WORTH = 2.0  # estimated seconds of reading for which a process is started, which takes half a second; our choice
_HELD = 24  # bytes for each element of a weight, of 4 in float32, that a reading in a process takes; our choice
_SHARE = 0.5  # of the available memory that is taken at most; our choice
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@final
class Pool:
    """Read matrices in this process, or in worker processes, each of which computes on one core.

    Args:
        workers: processes; 1 for none, but one thread, "auto" for as many as there are cores, memory and work for.

    Raises:
        InputError: for anything else.
    """

    def __init__(self, workers: str | int) -> None:
        if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            msg = f"workers= must be 'auto', or a number of worker processes, 1 or more; got {workers!r}"
            raise InputError(msg)
        self._workers = workers
        self._threads: ThreadPoolExecutor | None = None
        self.processes = Processes(partial(Worker, is_idle=False))
        """For the reader; none is started before the first reading."""

    def read(self, reader: Reader, names: Iterable[str], step: int) -> Iterator[LayerReport]:
        """Read matrices, and yield each reading when it is finished, which may be in another order."""
        names = list(names)
        count = self._count(reader, names)
        if count > 1:
            return self._read_beside(reader, names, step, count)
        self.processes.are_usable = False
        # One matrix is read in all threads of the BLAS; of several, more cores are for more processes.
        is_threaded = bool(why_not()) or (self._workers == "auto" and len(names) == 1)
        return (_read_here(reader, name, step, is_threaded=is_threaded) for name in names)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self.processes.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _read_beside(self, reader: Reader, names: Iterable[str], step: int, count: int) -> Iterator[LayerReport]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(count, thread_name_prefix="esdmon-reading")
        pending: set[Future[LayerReport]] = set()
        for name in names:
            if len(pending) > count:  # one copy more than there are processes, so that none waits for the next
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
            begun = reader.begin(name, step, moved=reader.mark(name), copy=True)
            reader.advance(wait=True)  # only this thread may ask a device whether the copy has arrived
            pending.add(self._threads.submit(begun))
        yield from (each.result() for each in as_completed(pending))

    def _count(self, reader: Reader, names: list[str]) -> int:
        """Return how many processes read; 1 for this one."""
        if why_not() or not names:
            return 1
        if isinstance(self._workers, int):
            return max(1, min(self._workers, len(names)))
        matrices = [matrix for matrix in reader.matrices if matrix.name in set(names) and not matrix.unreadable]
        largest = max(map(n_parameters, matrices), default=1)
        allowed = sum(map(nominal_seconds, matrices)) / _WORTH, _SHARE * available_bytes() / (_HELD * largest)
        return max(1, int(min(_cores(), len(names), *allowed)))


def _read_here(reader: Reader, name: str, step: int, *, is_threaded: bool) -> LayerReport:
    with nullcontext() if is_threaded else in_one_thread():
        return reader.read_one(name, step)


def _cores() -> int:
    """Return the cores for this process, no more than the threads that its environment allows."""
    given = (os.environ.get(name, "").partition(",")[0] for name in _THREADS)
    return min([cores(), *(int(value) for value in given if value.isdecimal() and int(value) > 0)])
