"""`RemoteReader`: read on another rank for rank 0, in a job where all ranks hold the same weights."""

import logging
import math
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import final

from esdmon.isolation import describe
from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain
from esdmon.runtime.coordination import Coordinator
from esdmon.runtime.executor import Executor
from esdmon.runtime.source import Answer, Source, Task

_log = logging.getLogger("esdmon")


@final
class RemoteReader:
    """Like `ReadingPipeline`, but sends readings to rank 0 as soon as they are ready, without waiting for a step."""

    reports = False

    def __init__(self, source: Source, executor: Executor, ranks: Coordinator) -> None:
        self._source = source
        self._executor = executor
        self._ranks = ranks
        self._is_helping = True
        self.latest: dict[str, LayerReport] = {}
        """Empty: rank 0 keeps the readings."""
        self.dropped = 0
        """Always 0: rank 0 counts."""

    @property
    def under_way(self) -> bool:
        """Return whether any reading is not finished."""
        return not self._executor.is_idle()

    @property
    def under_way_here(self) -> bool:
        """Return `under_way`: this rank waits for no other."""
        return self.under_way

    def settle(self) -> None:
        """Synchronise the device."""
        self._source.settle()

    def begin(self, step: int, _host_step: int | None = None, _extra: Collection[str] = ()) -> None:
        """Read what rank 0 assigns; at the first due step announce this rank instead. Rank 0 reads extra ones alone."""
        if not self._ranks.has_joined:
            self._source.refresh()
            self._ranks.join(self._source.fingerprint())
            return
        names = self._ranks.assigned(step) if self._is_helping else None
        if names is None:
            self._is_helping = False
            return
        tasks: list[Task] = []
        try:
            self._source.refresh()
            known = self._source.nominal()
            for name in names:
                if name in known and self._executor.has_room(name):  # each copy that is begun takes room
                    tasks.append(self._executor.begin(name, step, moved=math.nan))  # noqa: PERF401
        finally:  # rank 0 waits for the answer, whatever fails here
            self._executor.then(partial(self._send, step, tasks))

    def finished(self) -> Iterator[Report]:
        """Yield nothing: rank 0 makes the reports."""
        yield from ()

    def give_up(self) -> None:
        """Do nothing: rank 0 stops waiting by itself."""

    def close(self) -> None:
        """End the thread, and release the store."""
        self._executor.close()
        self._ranks.end()

    def state_dict(self) -> Plain:
        """Return an empty state: rank 0 keeps it."""
        return {}

    def prepare(self, _state: Plain) -> Callable[[], None]:
        """Return the function that starts again with the other ranks."""
        return self._ranks.restart

    def _send(self, step: int, tasks: list[Task]) -> None:
        answer: Answer = {}
        for task in tasks:
            answer |= task.poll() or {}
        try:
            self._ranks.answer(step, answer)
        except Exception as error:  # noqa: BLE001 -- the store of a job that ends
            self._is_helping = False
            _log.warning(
                "esdmon: rank 0 cannot be reached at step %d: %s. This rank no longer shares the reading.",
                step,
                describe(error),
            )
