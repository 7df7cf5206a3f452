"""A rank that reads for rank 0 keeps to the same bound on copies."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from esdmon.limits import Limits
from esdmon.records import Coverage, LayerReport, Screened
from esdmon.runtime.ranks.holdings import Holder
from esdmon.runtime.ranks.messages import Assignment, Plan, Role
from esdmon.runtime.ranks.remote_reader import RemoteReader
from esdmon.runtime.workers.executor import Executor
from esdmon.schedule.budget import Budget

SIZE = Limits().copied_bytes // 3


class Parts:
    """All of each matrix is here."""

    def is_here(self, name: str) -> bool:
        return True

    def holdings(self) -> Any:
        return {}, {}


class Source:
    """Ten matrices, whose readings wait for a gate."""

    is_idle = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.n_refreshed = 0

    def synchronizer(self) -> Callable[[], None]:
        return lambda: None

    def advance(self, *, wait: bool = False) -> None:
        pass

    def refresh(self) -> bool:
        self.n_refreshed += 1
        return False

    def nominal(self) -> dict[str, float]:
        return {f"w{k}": 1.0 for k in range(10)}

    def seconds_on_device(self) -> dict[str, float]:
        return {}

    def solvable(self) -> frozenset[str]:
        return frozenset()

    def solve(self, name: str, step: int, *, moved: Callable[[], float]) -> None:
        raise NotImplementedError

    def size(self, name: str) -> int:
        return SIZE

    def n_elements(self, name: str) -> int:
        return 0

    def is_trainable(self, name: str) -> bool:
        return True

    def drifts(self, names: Iterable[str]) -> dict[str, float]:
        return {}

    def screen(self, name: str, step: int) -> float | None:
        return None

    def screened(self) -> list[Screened]:
        return []

    def mark(self, name: str) -> Callable[[], float]:
        return lambda: 0.0

    strict = False
    coverage = Coverage(0, 0)

    @property
    def parts(self) -> Any:
        return Parts()

    def last_step(self, name: str) -> Any:
        raise NotImplementedError

    def begin(self, name: str, step: int, *, moved: Callable[[], float], copy: bool) -> Callable[[], LayerReport]:
        self.begun.append(name)

        def finish() -> LayerReport:
            self.gate.wait(60)
            return LayerReport(name, "ok", step)

        return finish


class Assigns:
    """Rank 0 asks for all of them."""

    rank = 1
    epoch = 0

    def token(self) -> bytes:
        return b"secret"

    def announce(self, table: Any) -> None:
        pass

    def role(self, _version: int) -> Role:
        return Role({}, {})

    def holders(self, _version: int, _parameter: str) -> tuple[Holder, ...]:
        return ()

    def plan(self, previous: int) -> Plan:
        return Plan(1, tuple(Assignment(1, (f"w{k}",)) for k in range(10)))

    def answer(self, *_: Any) -> None:
        pass


def test_copies_that_wait_are_bounded_on_every_rank() -> None:
    """Each copy that is begun takes room from the next."""
    source = Source()
    worker = Executor(source, Budget(None), mode="thread")
    reader = RemoteReader(source, worker, Assigns())  # type: ignore[arg-type]
    reader.begin(1)  # announces what it holds
    reader.begin(2)
    assert source.begun == ["w0", "w1", "w2"]
    source.gate.set()
    worker.close()


def test_before_rank_0_watches_a_step_is_a_look() -> None:
    """The model is not searched at each step for a rank 0 that may never watch; after a due step nothing is done."""

    class Alone(Assigns):
        def token(self) -> None:  # type: ignore[override]
            return None

    source = Source()
    executor = Executor(source, Budget(None), mode="sync")
    reader = RemoteReader(source, executor, Alone())  # type: ignore[arg-type]
    for step in range(1, 4):
        assert not reader.is_ready
        reader.get_ready(step)
    assert source.n_refreshed == 0
    reader.begin(4)
    assert (reader.is_ready, source.n_refreshed) == (True, 1)
    reader = RemoteReader(source, executor, Assigns())  # type: ignore[arg-type]
    reader.get_ready(1)
    assert reader.is_ready
