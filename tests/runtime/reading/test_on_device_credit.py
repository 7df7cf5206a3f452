"""How many eigenvalue problems a GPU solves in the hook, by what they cost; the GPU is simulated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.runtime.reading.computing import Computing
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.workers.executor import Executor
from esdmon.schedule.budget import Budget
from esdmon.weights import Transfers
from esdmon.weights.device import cost
from tests.clocks import FakeClock, set_clock
from tests.limits import set_limits
from tests.simulated_device import SimulatedDevice


class _Source:
    """Readings of which the hook takes 3 s, and the thread 2."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def size(self, _name: str) -> int:
        return 1

    def solve(self, name: str, step: int, *, moved: Any) -> Callable[[], esdmon.LayerReport]:
        self._clock.passes(3.0)
        return lambda: esdmon.LayerReport(name, "ok", step)


def test_hook_and_thread_are_charged_once_each() -> None:
    clock = FakeClock()
    budget = Budget(0.5, clock=lambda: clock.now, cpu_clock=lambda: 0.0, advance=0.0)
    budget.start()
    source: Any = _Source(clock)
    executor = Executor(source, budget, mode="device")
    times = iter([10.0, 12.0])
    executor.clock = lambda: next(times)
    assert executor.may_use_device
    executor.on_device = frozenset("w")
    with budget.spending():
        task = executor.begin("w", 1, moved=lambda: 0.0)
    assert budget.spent == pytest.approx(3.0)
    done: dict[str, Any] | None = None
    while done is None:
        done = task.poll()
    executor.close()
    assert done["w"][1] == pytest.approx(5.0)
    assert budget.spent == pytest.approx(5.0)


@pytest.mark.parametrize(("m", "seconds"), [(1024, 10.5e-3), (2048, 26e-3), (4096, 117e-3)], ids=str)
def test_estimates_are_those_of_an_h100(m: int, seconds: float) -> None:
    """The eigenvalues of one matrix, in float64, within a factor of 1.6: other runs had 101 ms for 4096."""
    (matrix,) = esdmon.weights.discover(nn.Linear(m, m, bias=False, device="meta")).matrices
    expected = cost.seconds_on_device(matrix)
    assert expected is not None
    assert seconds / 1.6 < expected < 1.6 * seconds


@pytest.mark.parametrize(("m", "pays"), [(256, False), (512, False), (768, True), (4096, True)])
def test_small_matrices_are_not_worth_it(m: int, *, pays: bool) -> None:
    (matrix,) = esdmon.weights.discover(nn.Linear(m, m, bias=False, device="meta")).matrices
    assert (cost.seconds_on_device(matrix) is not None) is pays


class Deep:
    """Eight layers on a simulated GPU that takes a second for each, by a clock that nothing else moves."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        device: SimulatedDevice | None = None,
        *,
        nominal: float = 10.0,
        **options: Any,
    ) -> None:
        self.clock = set_clock(monkeypatch)
        self.device = device or SimulatedDevice()
        monkeypatch.setattr(
            "esdmon.runtime.workers.executor.time", FakeClock()
        )  # by which a thread beside the hook takes nothing
        monkeypatch.setattr("esdmon.watching.Transfers", lambda: Transfers({"cpu": self.device}))
        monkeypatch.setattr("esdmon.runtime.reading.gpu_solver.seconds_on_device", lambda _matrix: 0.5)
        monkeypatch.setattr("esdmon.runtime.reading.watched_model.nominal_seconds", lambda _matrix: nominal)
        solve = Computing.solve

        def slow(computing: Computing, matrix: Any, kind: str) -> Any:
            self.clock.passes(1.0)
            return solve(computing, matrix, kind)

        monkeypatch.setattr(Computing, "solve", slow)
        self.model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
        self.monitor = esdmon.watch(self.model, every=5, mode="device", sinks=[], alerts=None, **options)

    def step(self, seconds: float) -> int:
        """Take a step that moves all weights, and return how many seconds the hook has taken."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1.1)
        self.clock.passes(seconds)
        before = self.clock.now
        self.monitor.step()
        took = self.clock.now - before
        self.device.run_side()
        self.monitor.flush()
        return round(took)


def test_the_hook_stops_when_the_credit_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first reading takes a thousand times what was expected; the second due step knows."""
    set_limits(monkeypatch, advance_seconds=0.0)
    run = Deep(monkeypatch, budget=0.1)
    assert [run.step(5.5) for _ in range(15)] == [0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3]
    run.monitor.close()
    assert run.monitor.overhead == pytest.approx(8 / (14 * 5.5 + 8), rel=0.01)


def test_what_has_no_room_is_read_at_the_steps_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no step waits for more than some readings."""
    set_limits(monkeypatch, copied_bytes=2 * 4 * 64 * 64)
    run = Deep(monkeypatch, budget=0.9)
    assert [run.step(10.0) for _ in range(10)] == [0, 0, 0, 0, 2, 2, 2, 2, 0, 2]
    run.monitor.close()
    assert run.monitor.dropped == 0


def test_what_the_gpu_has_no_memory_for_is_charged_and_planned_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the device waited for, nor does a step read as many as a GPU would."""
    set_limits(monkeypatch, advance_seconds=0.0)
    waits: list[int] = []
    monkeypatch.setattr(Reader, "synchronizer", lambda _: lambda: waits.append(1))
    run = Deep(monkeypatch, SimulatedDevice(room=0), budget=0.1)
    spent = [run.step(5.5) for _ in range(15)]
    run.monitor.close()
    assert (spent, waits) == ([0] * 15, [])
    assert run.monitor.dropped == 0


def test_a_gpu_that_is_slower_than_a_thread_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As float64 is on most that are not made for servers; known once one matrix of the kind was read so."""
    run = Deep(monkeypatch, budget=None, nominal=0.6)
    assert [run.step(5.5) for _ in range(10)] == [0, 0, 0, 0, 8, 0, 0, 0, 0, 0]
    run.monitor.close()


def test_without_a_limit_all_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it waits for a thread in memory."""
    set_limits(monkeypatch, copied_bytes=2 * 4 * 64 * 64)
    run = Deep(monkeypatch, budget=None)
    assert [run.step(10.0) for _ in range(10)] == [0, 0, 0, 0, 8, 0, 0, 0, 0, 8]
    run.monitor.close()
    assert run.monitor.dropped == 0
