"""Where readings are finished: on the spot, or by a thread of its own while training goes on."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias, final

from esdmon.budget import Budget
from esdmon.faults import describe
from esdmon.records import Coverage, LayerReport

Mode: TypeAlias = Literal["sync", "thread"]
MEMORY = 256 << 20
"""Bytes of copied weights that wait for the thread; a larger matrix is copied when nothing else waits. Our choice."""

Answer: TypeAlias = dict[str, tuple[LayerReport, float]]
"""Readings by matrix, each with the seconds that it took."""


class Source(Protocol):
    """What is read: a model's matrices, by name. `esdmon.analysis.Reader` is one."""

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
    elsewhere: bool = False
    """Whether another rank does it."""


@final
class Worker:
    """Begins readings; in the mode "thread" they are finished by one thread, in the order of their beginning.

    Its time is taken from the budget second for second, though on idle cores it costs the run nothing: there is no
    telling which are idle. The thread computes with numpy and torch, which let others run meanwhile, and never with
    scipy, which does not.
    """

    def __init__(self, source: Source, budget: Budget, *, mode: Mode = "sync") -> None:
        self._source = source
        self._budget = budget
        self._mode = mode
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: dict[Future[tuple[LayerReport, float]], int] = {}

    def begin(self, name: str, step: int, *, moved: float) -> Task | None:
        """Begin a reading; None where too many copies wait already."""
        if self._mode == "sync":
            with self._budget.measured() as cost:
                layer = self._source.begin(name, step, moved=moved, copy=False)()
            answer: Answer = {name: (layer, cost.seconds)}
            return Task((name,), lambda: answer, lambda: answer)
        size = self._source.size(name)
        self._waiting = {future: each for future, each in self._waiting.items() if not future.done()}
        if self._waiting and sum(self._waiting.values()) + size > MEMORY:
            return None
        finish = self._source.begin(name, step, moved=moved, copy=True)
        if self._thread is None:  # now, and not earlier, so that a run that forks first forks no thread
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="esdmon")
        future = self._thread.submit(_timed, finish)
        self._waiting[future] = size
        return Task((name,), partial(self._poll, name, step, future), partial(_cancel, future))

    def close(self) -> None:
        """Free the thread; what it has not begun is left."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

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


def _cancel(future: Future[tuple[LayerReport, float]]) -> Answer:
    future.cancel()
    return {}
