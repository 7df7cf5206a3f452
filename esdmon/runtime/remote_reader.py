"""A rank that reads for rank 0, in a job whose ranks hold the same weights."""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

from esdmon.isolation import describe
from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain
from esdmon.runtime.coordination import Coordinator
from esdmon.runtime.executor import Answer, Executor, Source, Task

_log = logging.getLogger("esdmon")


@final
class RemoteReader:
    """Like `ReadingPipeline`, but sends readings to rank 0 as soon as they are ready, without waiting for a step."""

    reports = False

    def __init__(self, source: Source, worker: Executor, replicas: Coordinator) -> None:
        self._source = source
        self._worker = worker
        self._replicas = replicas
        self._is_asked = True
        self.latest: dict[str, LayerReport] = {}
        """Empty: it is kept by rank 0."""
        self.dropped = 0
        """Always 0: likewise."""

    @property
    def under_way(self) -> bool:
        """Whether anything is not finished."""
        return not self._worker.is_idle

    @property
    def under_way_here(self) -> bool:
        """The same: it waits for no other rank."""
        return self.under_way

    def settle(self) -> None:
        """Wait for the device."""
        self._source.settle()

    def begin(self, step: int, _host_step: int | None = None) -> None:
        """Read what rank 0 says. At the first due step it does not know yet who is there."""
        if not self._replicas.has_joined:
            self._source.refresh()
            self._replicas.join(self._source.fingerprint())
            return
        names = self._replicas.assigned(step) if self._is_asked else None
        if names is None:
            self._is_asked = False
            return
        tasks: list[Task] = []
        try:
            self._source.refresh()
            known = self._source.nominal()
            tasks.extend(  # one by one: each copy that is begun takes room
                self._worker.begin(name, step, moved=math.nan)
                for name in names
                if name in known and self._worker.has_room(name)
            )
        finally:  # rank 0 waits for it, whatever fails here
            self._worker.then(partial(self._send, step, tasks))

    def finished(self) -> Iterator[Report]:
        """None: they are rank 0's."""
        yield from ()

    def give_up(self) -> None:
        """Nothing to do: rank 0 does without."""

    def close(self) -> None:
        """Free the worker, and the talk."""
        self._worker.close()
        self._replicas.end()

    def state_dict(self) -> Plain:
        """Nothing: it is rank 0's."""
        return {}

    def prepare(self, _state: Plain) -> Callable[[], None]:
        """Return what begins again with the other ranks."""
        return self._replicas.restart

    def _send(self, step: int, tasks: list[Task]) -> None:
        answer: Answer = {}
        for task in tasks:
            answer |= task.poll() or {}
        try:
            self._replicas.answer(step, answer)
        except Exception as error:  # noqa: BLE001 -- the store of a job that ends
            self._is_asked = False
            _log.warning("esdmon: rank 0 cannot be reached at step %d, and is not read for: %s", step, describe(error))
