"""Simulate sweeps of a large model by one process, with a simulated clock; see `tests.benchmarks.sweep`."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esdmon.limits import Limits
from esdmon.runtime.pipeline.screening import Screening
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority
from esdmon.schedule.workers import Workers

_FLOPS = 1e11
_SOLVE = 1.8 / 4096**3
_REST = 5e-5  # seconds for each eigenvalue, of one core
SLOWER = 3e-4  # of a step, for each thread that reads
BLOCKED = 2e-4  # seconds of the hook for each copy
PASSES = 5  # over a weight, for a screening
BANDWIDTH = 1.5e10  # bytes of float32 a second, of one core
QUEUED = 5e-4  # seconds of the hook for a screening on a GPU
DRIFT = 1e-2  # ‖ΔW‖/‖W‖ between due steps: all matrices move


@dataclass(frozen=True)
class Model:
    """A decoder of equal blocks."""

    blocks: int
    width: int
    keys: int
    """Width of k and v, which heads may share."""
    hidden: int
    ranks: int
    """Of a job that trains it."""

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each matrix."""
        attention = {"q_proj": self.width, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.width}
        sides = {f"self_attn.{name}": (self.width, size) for name, size in attention.items()}
        sides |= {f"mlp.{name}_proj": (self.width, self.hidden) for name in ("gate", "up", "down")}
        return {f"model.layers.{block}.{name}": shape for block in range(self.blocks) for name, shape in sides.items()}

    def costs(self) -> dict[str, float]:
        """Return the seconds of a core that a reading of each matrix takes."""
        return {name: seconds_of(*sorted(shape)) for name, shape in self.shapes().items()}

    def costs_on_device(self) -> dict[str, float]:
        """Return the seconds of the hook that the eigenvalues of each matrix take on a GPU."""
        return {name: seconds_on_device(*sorted(shape)) for name, shape in self.shapes().items()}

    def rest(self) -> dict[str, float]:
        """Return the seconds of a core that the rest of such a reading takes."""
        return {name: _REST * min(shape) for name, shape in self.shapes().items()}


def seconds_of(m: int, n: int) -> float:
    return 2 * n * m**2 / _FLOPS + _SOLVE * m**3


def seconds_on_device(m: int, n: int) -> float:
    return 9e-6 * m + 1.1e-12 * m**3 + 2 * n * m**2 / 5e13


MODELS = {
    "7B": Model(32, 4096, 4096, 11008, 8),
    "13B": Model(40, 5120, 5120, 13824, 8),
    "70B": Model(80, 8192, 1024, 28672, 64),
}


@dataclass
class Clock:
    """Seconds of the run."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Times:
    """Seconds of the run until something was read; infinite where it was not within the limit."""

    kinds: float
    """One matrix of each kind."""
    depths: float
    """Three of each."""
    all: float
    overhead: float
    """Share of the run that is lost."""
    norms: float = math.inf
    """Norms of each matrix, read or screened."""
    oldest: float = math.inf
    """Age of the oldest norms after that."""


class Screened:
    """A source whose screenings take as long as a model says, on a clock that is a number."""

    def __init__(self, clock: Clock, seconds: Mapping[str, float]) -> None:
        self._clock = clock
        self._seconds = seconds
        self.times: dict[str, float] = {}

    def screen(self, name: str, _step: int) -> float:
        """Let the loop wait for it."""
        self._clock.now += self._seconds[name]
        self.times[name] = self._clock.now
        return 0.0

    def screened(self) -> list[Any]:
        """Return nothing: λmax does not jump."""
        return []

    def whole(self, name: str) -> str:
        """Return the same name: one process has all."""
        return name


@dataclass
class Norms:
    """When the norms of each matrix were known last."""

    clock: Clock
    names: Sequence[str]
    screened: Screened
    read: dict[str, float] = field(default_factory=dict)
    first: float = math.inf
    oldest: float = 0.0

    def look(self) -> None:
        """Take note at the end of a due step."""
        known = [max(self.read.get(name, -1.0), self.screened.times.get(name, -1.0)) for name in self.names]
        if math.isinf(self.first) and min(known) >= 0:
            self.first = self.clock.now
        if not math.isinf(self.first):
            self.oldest = max(self.oldest, self.clock.now - min(known))


def simulate(
    costs: Mapping[str, float],
    screening: Mapping[str, float],
    *,
    every: int,
    step: float,
    share: float,
    beside: Mapping[str, float] | None = None,
    limit: float = 3e6,
) -> Times:
    """Run the schedule and the budget until each matrix was read twice; screen where that costs anything.

    The loop waits for `costs`; what a thread takes beside it, of a core that is not idle, is charged.
    """
    clock = Clock()
    budget = Budget(share, clock=clock, cpu_clock=clock)
    beside = beside or dict.fromkeys(costs, 0.0)
    turns = ReadPriority({name: seconds + beside[name] for name, seconds in costs.items()})
    source: Any = Screened(clock, screening)
    norms = Norms(clock, [*costs], source)
    screens = Screening(source, turns, source, budget, None)
    budget.start()
    read: dict[str, float] = {}
    for due in itertools.count(every, every):
        clock.now += every * step
        budget.earn(at_most=4 * turns.sweep)
        turns.pass_by()
        for name in turns.to_measure():
            turns.drifted(name, due, DRIFT, trainable=True)
        for name in turns.choose(due, budget.credit):
            with budget.spending():
                clock.now += costs[name]  # in the hook
            budget.read(beside[name])
            turns.begun(name, due)
            turns.took(name, costs[name] + beside[name])
            read.setdefault(name, clock.now)
            norms.read[name] = clock.now
        if screening:
            with budget.spending():
                screens.screen(due, without=(), latest={})
        norms.look()
        if (len(read) == len(costs) and clock.now > 2 * until(read, costs, None)) or clock.now > limit:
            break
    kinds, depths, whole = (until(read, costs, count) for count in (1, 3, None))
    return Times(kinds, depths, whole, budget.overhead, norms.first, norms.oldest)


@dataclass
class Threads:
    """Threads that read beside the training, on a clock that is a number."""

    workers: Workers
    sizes: Mapping[str, int]
    memory: int = Limits().copied_bytes
    queued: deque[tuple[str, float]] = field(default_factory=deque)
    running: dict[str, float] = field(default_factory=dict)
    """With the times at which they are finished."""

    def has_room(self, name: str) -> bool:
        held = sum(self.sizes[each] for each in (*self.running, *(each for each, _ in self.queued)))
        return not held or held + self.sizes[name] <= self.memory

    def finished(self, now: float) -> list[str]:
        """Return the readings that are finished, and begin what may begin."""
        done = [name for name, end in self.running.items() if end <= now]
        for name in done:
            del self.running[name]
        allowed = 0 if self.workers.is_paused else max(1, self.workers.count)
        while self.queued and len(self.running) < allowed:
            name, seconds = self.queued.popleft()
            self.running[name] = now + seconds
        return done


def simulate_beside(
    costs: Mapping[str, float],
    sizes: Mapping[str, int],
    screening: Mapping[str, float],
    *,
    idle: int,
    every: int,
    step: float,
    share: float,
    limit: float = 3e6,
) -> Times:
    """Run the schedule, the budget and the threads on idle cores until each matrix was read twice."""
    clock = Clock()
    threads = Threads(Workers(share, lambda _own: idle // 2, clock=clock), sizes)
    workers = threads.workers
    budget = Budget(share, clock=clock, cpu_clock=lambda: 0.0, rate=lambda: workers.rate)
    turns = ReadPriority(costs)
    source: Any = Screened(clock, screening)
    norms = Norms(clock, [*costs], source)
    screens = Screening(source, turns, source, budget, None)
    budget.start()
    read: dict[str, float] = {}
    left: list[str] = []
    lost = 0.0
    for at in itertools.count(1):
        slow = step * SLOWER * len(threads.running)
        lost += slow
        clock.now += step + slow
        budget.lose(workers.step(is_busy=bool(threads.running)))
        for name in threads.finished(clock.now):
            turns.took(name, costs[name])
            budget.read(costs[name])
            read.setdefault(name, clock.now)
            norms.read[name] = clock.now
        if at % every == 0:
            budget.earn(at_most=2 * turns.sweep)
            turns.pass_by()
            for name in turns.to_measure():
                turns.drifted(name, at, DRIFT, trainable=True)
            pending = sum(costs[name] for name in (*threads.running, *(name for name, _ in threads.queued)))
            left = turns.choose(at, budget.reading_credit - pending, forced=not threads.running)
            if screening:
                before = clock.now
                with budget.spending():
                    screens.screen(at, without=(), latest={})
                lost += clock.now - before
            norms.look()
        elif threads.queued or threads.running:
            continue
        while left and threads.has_room(left[0]):
            name = left.pop(0)
            with budget.spending():
                clock.now += BLOCKED
                lost += BLOCKED
            turns.begun(name, at)
            threads.queued.append((name, costs[name]))
        if workers.count == 0:
            left = []
        threads.finished(clock.now)
        if (len(read) == len(costs) and clock.now > 2 * until(read, costs, None)) or clock.now > limit:
            break
    kinds, depths, whole = (until(read, costs, count) for count in (1, 3, None))
    return Times(kinds, depths, whole, lost / clock.now, norms.first, norms.oldest)


def until(read: Mapping[str, float], names: Sequence[str] | Mapping[str, float], count: int | None) -> float:
    """Return when so many matrices of each kind had been read."""
    kinds: dict[str, list[float]] = {}
    for name in names:
        kinds.setdefault(name.split(".", 3)[3], []).append(read.get(name, math.inf))
    return max(sorted(times)[len(times) - 1 if count is None else count - 1] for times in kinds.values())
