"""A rank that reads for rank 0, in a job whose ranks hold the same weights."""

from collections import deque
from collections.abc import Iterator
from typing import final

from esdmon.records import LayerReport, Report
from esdmon.replicas import Replicas
from esdmon.state import Plain
from esdmon.worker import Answer, Source, Task, Worker


@final
class Helper:
    """As `Readings`, and its reports go to rank 0: `finished` gives none."""

    reports = False

    def __init__(self, source: Source, worker: Worker, replicas: Replicas) -> None:
        self._source = source
        self._worker = worker
        self._replicas = replicas
        self._asked = True
        self._due: deque[tuple[int, list[Task], Answer]] = deque()
        self.history: dict[str, deque[LayerReport]] = {}
        """Empty: it is kept by rank 0."""
        self.dropped = 0
        """Always 0: likewise."""

    @property
    def under_way(self) -> bool:
        """Whether `finished` has anything to look for."""
        return bool(self._due)

    def settle(self) -> None:
        """Wait for the device."""
        self._source.settle()

    def begin(self, step: int) -> None:
        """Read what rank 0 says. At the first due step it does not know yet who is there."""
        self._source.refresh()
        if not self._replicas.has_joined:
            self._replicas.join(self._source.fingerprint())
            return
        names = self._replicas.assigned(step) if self._asked else None
        if names is None:
            self._asked = False
            return
        known = self._source.nominal()
        tasks = [self._worker.begin(name, step, moved=float("nan")) for name in names if name in known]
        self._due.append((step, [task for task in tasks if task is not None], {}))

    def finished(self) -> Iterator[Report]:
        """Send what is complete."""
        while self._due:
            step, tasks, answer = self._due[0]
            for task in tuple(tasks):
                read = task.poll()
                if read is not None:
                    tasks.remove(task)
                    answer |= read
            if tasks:
                return
            self._replicas.answer(step, answer)
            self._due.popleft()
        yield from ()

    def give_up(self) -> None:
        """What is not finished is not sent."""
        self._due.clear()

    def close(self) -> None:
        """Free the worker."""
        self._worker.close()

    def state_dict(self) -> Plain:
        """Nothing: it is rank 0's."""
        return {}

    def load_state_dict(self, state: Plain) -> None:
        """Nothing to do."""
