"""Define `Assembly`, which assembles sharded parameters and reads them, in a thread that may wait for other ranks."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, final

from esdmon.isolation import describe
from esdmon.records import LayerReport
from esdmon.runtime.ranks.fragment_exchange import FragmentCopy, FragmentExchange, Moved, PeerError
from esdmon.runtime.ranks.holdings import Holder
from esdmon.runtime.ranks.memory_limit import MemoryLimit
from esdmon.runtime.ranks.parts import ShardedSource
from esdmon.runtime.workers.source import Answer

Clock: TypeAlias = Callable[[], float]


@final
@dataclass(frozen=True, slots=True)
class Assembly:
    """Readings of one assignment whose parameters are sharded over ranks."""

    step: int
    readings: Mapping[str, Callable[[], LayerReport]]
    """Functions that finish each reading once its parameters are assembled, by name of the matrix in the job."""
    keys: Mapping[str, str]
    """Keys under which the holders keep their copies, by this rank's names of the parameters."""
    holders: Mapping[str, Callable[[], tuple[Holder, ...]]]
    """Functions that look up the holders of all fragments in the job's store, by this rank's names of the
    parameters."""
    own: Mapping[str, FragmentCopy]
    """Copies of this rank's fragments."""
    until: float
    """The deadline for copies, on the monotonic clock."""
    failures: dict[int, str]
    """Ranks that did not serve their fragment, and the reasons; filled by `read`."""
    left: Callable[[], Collection[int]]
    """Returns the ranks that have closed their monitors."""

    def read(
        self, source: ShardedSource, exchange: FragmentExchange | None, memory_limit: MemoryLimit, clock: Clock
    ) -> Answer:
        """Assemble the parameters and read the matrices.

        Args:
            source: the matrices of this rank's model.
            exchange: fetches the fragments of other ranks; None if this rank cannot.
            memory_limit: waits until there is memory for the whole parameters.
            clock: returns the seconds of the calling thread.

        Returns:
            The readings, each with its seconds without waiting. A matrix that cannot be assembled has a failed reading;
            if a rank has closed its monitor before this step it has none, so that an earlier reading is kept.

        Raises:
            Exception: any error, if the source is strict.
        """
        stopwatch = _Stopwatch(clock)
        answer: Answer = {}
        try:
            parameters = {local: look_up() for local, look_up in self.holders.items()}
            size = sum(map(source.parts.whole_size, parameters))
            fetch = partial(self._fetch, exchange, stopwatch)
            with (
                memory_limit.holding(size, stopwatch.waiting),
                source.parts.assembled(parameters, self.own, fetch) as ratio,
            ):
                for name, finish in self.readings.items():
                    layer = replace(finish(), name=name, update_ratio=ratio)
                    answer[name] = layer, stopwatch.lap()
        except PeerError as error:
            if error.rank in self.left():
                return answer
            if not error.answers:
                self.failures[error.rank] = str(error)
            return answer | self._failed(answer, str(error))
        except Exception as error:
            if source.strict:
                raise
            return answer | self._failed(answer, describe(error))
        return answer

    def _fetch(
        self, exchange: FragmentExchange | None, stopwatch: "_Stopwatch", local: str, holder: Holder, into: memoryview
    ) -> Moved:
        if exchange is None:
            raise LookupError("this rank does not serve fragments")
        with stopwatch.waiting():
            return exchange.fetch(holder.rank, holder.address, self.keys[local], into, until=self.until)

    def _failed(self, answer: Answer, why: str) -> Answer:
        """Return a failed reading of each matrix that has none."""
        missing = [name for name in self.readings if name not in answer]
        return {name: (LayerReport(name, "failed", self.step, why), 0.0) for name in missing}


class _Stopwatch:
    """Measure the seconds of a thread, without the time that it waits for other ranks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        last, self._last = self._last, self._clock()
        return self._last - last

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count only the CPU time of a block."""
        since, cpu = self._clock(), time.thread_time()
        try:
            yield
        finally:
            self._last += self._clock() - since - (time.thread_time() - cpu)
