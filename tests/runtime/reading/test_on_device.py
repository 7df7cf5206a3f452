"""Eigenvalues that are computed on a GPU in the hook, where no core is idle; the GPU is simulated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.options import modes
from esdmon.runtime.reading.computing import Computing
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.workers.executor import Executor
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority
from esdmon.sinks import MemorySink
from esdmon.weights import Transfers
from esdmon.weights.device import cost
from tests.clocks import FakeClock, set_clock
from tests.idle import Idle
from tests.limits import set_limits
from tests.simulated_device import SimulatedDevice, train_step


class Run:
    """Two layers on a simulated GPU, which is worth while for the first only."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        device: SimulatedDevice,
        idle: Callable[[], int] = lambda: 0,
        **options: Any,
    ) -> None:
        monkeypatch.setattr("esdmon.watching.Transfers", lambda: Transfers({"cpu": device}))
        monkeypatch.setattr("esdmon.options.modes.IdleCores", lambda **_: Idle(idle))
        monkeypatch.setattr("esdmon.options.modes.cores", lambda **_: 8)
        monkeypatch.setattr(
            "esdmon.runtime.reading.gpu_solver.seconds_on_device", lambda matrix: 1e-3 if matrix.name == "0" else None
        )
        monkeypatch.setattr(
            ReadPriority, "pays_on_device", lambda *_: True
        )  # these take no time, however they are read
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.device = device
        self.sink = MemorySink()
        self.clones: dict[int, Tensor] = {}
        self.losses: list[float] = []
        given: dict[str, Any] = {"every": 5, "mode": "thread", "budget": 1.0, "alerts": None} | options
        self.monitor = esdmon.watch(self.model, sinks=[self.sink], **given)

    def train(self, steps: int) -> "Run":
        for _ in range(steps):
            self.losses.append(train_step(self.device, self.model, self.optimizer))
            is_due = self.monitor.step()
            self.clones[self.monitor.steps] = self.model[0].get_parameter("weight").detach().clone()
            self.device.run_side()
            if is_due:
                self.monitor.flush()
        return self

    def read(self, name: str) -> list[Any]:
        return [layer for report in self.sink.reports for layer in report.new if layer.name == name]

    def close(self) -> None:
        """Close, and compare what was read with the clones."""
        self.monitor.close()
        assert (self.monitor.dropped, self.device.broken) == (0, [])
        for layer in self.read("0"):
            sigma = torch.linalg.svdvals(self.clones[layer.step].double())
            assert layer.measures["lambda_max"] == pytest.approx(float(sigma.max() ** 2) / 96, rel=1e-5)


@pytest.mark.parametrize("options", [{"mode": "device"}, {"mode": "thread"}, {"mode": "process"}], ids=str)
def test_where_no_core_is_idle_the_gpu_solves(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, of the step that was due, without a copy of the weight; other layers are copied."""
    run = Run(monkeypatch, SimulatedDevice(), **options).train(30)
    run.close()
    assert [layer.step for layer in run.read("0")] == list(range(5, 31, 5))
    assert {layer.precision for layer in run.read("0")} == {"float64"}
    assert {layer.precision for layer in run.read("2")} == {"float32"}
    assert run.device.clones == len(run.read("2")) > 0
    assert run.monitor.errors == ()


def test_it_reads_what_a_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the record, except for the precision; and losses are the same to the last bit."""
    runs = {
        mode: Run(monkeypatch, SimulatedDevice(), mode=mode, workers=0, budget=1.0, precision="exact").train(20)
        for mode in ("device", "thread")
    }
    for run in runs.values():
        run.close()
    assert runs["device"].losses == runs["thread"].losses
    records = {
        mode: {(each.name, each.step): each.to_record() | {"emitted_step": 0} for each in run.read("0") + run.read("2")}
        for mode, run in runs.items()
    }
    common = records["device"].keys() & records["thread"].keys()
    assert len(common) >= 4
    for key in common:
        assert records["device"][key] == records["thread"][key]


@pytest.mark.parametrize("options", [{"workers": 0}, {"budget": None}], ids=str)
def test_a_thread_that_is_charged_in_full_leaves_the_gpu_alone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, SimulatedDevice(), **options).train(10)
    run.close()
    assert run.device.clones >= 2


def test_threads_read_while_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle cores are counted again in each block of 20 steps."""
    idle = 4
    run = Run(monkeypatch, SimulatedDevice(), lambda: idle, every=10).train(10)
    assert [layer.precision for layer in run.read("0")] == ["float32"]
    idle = 0
    run.train(40)
    assert run.read("0")[-1].precision == "float64"
    idle = 4
    run.train(40)
    run.close()
    assert run.read("0")[-1].precision == "float32"


def test_without_memory_on_the_gpu_a_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, SimulatedDevice(room=0), mode="device").train(10)
    run.close()
    assert {layer.precision for layer in run.read("0")} == {"float32"}
    assert run.monitor.errors == ()


def test_a_solver_that_fails_costs_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one fault of the monitor, and threads read this matrix from then on."""
    run = Run(monkeypatch, SimulatedDevice(), mode="device")

    def fail(*_: Any) -> Any:
        raise RuntimeError("cusolver error")

    monkeypatch.setattr("esdmon.runtime.reading.computing.Computing.solve", fail)
    run.train(30)
    run.close()
    assert [layer.step for layer in run.read("0")] == list(range(5, 31, 5))
    assert [(fault.who, fault.count) for fault in run.monitor.errors] == [("the eigenvalue solver on the GPU", 1)]


def test_a_weight_without_numbers_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, SimulatedDevice(), mode="device")
    with torch.no_grad():
        run.model[0].get_parameter("weight").fill_(math.nan)
    run.train(5)
    run.monitor.close()
    (layer,) = run.read("0")
    assert layer.status == "nonfinite"
    assert run.monitor.errors == ()


def test_without_a_gpu_a_thread_reads(caplog: pytest.LogCaptureFixture) -> None:
    with esdmon.watch(nn.Linear(64, 64), every=1, mode="device", sinks=[], alerts=None) as monitor:
        monitor.step()
    assert "mode='device' needs a process that trains alone, and on its CUDA device a whole parameter" in caplog.text
    assert monitor.report is not None
    assert [layer.status for layer in monitor.report] == ["ok"]


def test_in_a_job_of_several_ranks_threads_read(caplog: pytest.LogCaptureFixture) -> None:
    """A rank that waits for its GPU slows the steps by which others measure what their threads cost."""
    found = [modes.resolved_mode("device", on_accelerator=True, on_device=True, job=job) for job in (1, 2)]
    assert found == ["device", "thread"]
    assert caplog.text.count("needs a process that trains alone") == 1


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
    monkeypatch.setattr(Reader, "settle", lambda _: waits.append(1))
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


@pytest.mark.parametrize("strict", [False, True])
def test_an_emptied_weight_is_skipped(monkeypatch: pytest.MonkeyPatch, *, strict: bool) -> None:
    run = Run(monkeypatch, SimulatedDevice(), mode="device", strict=strict)
    run.model[0].get_parameter("weight").data = torch.empty(0)
    for _ in range(5):
        run.monitor.step()
    run.device.run_side()  # the other layer's copy arrives, so that closing does not wait for it
    run.monitor.close()
    assert [layer.status for layer in run.read("0")] == ["skipped"]
    assert run.monitor.errors == ()


def test_what_takes_a_cpu_long_in_the_hook_is_read_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a shuffled copy, or vectors."""
    run = Run(monkeypatch, SimulatedDevice(), mode="thread", measures="all").train(5)
    run.close()
    assert {layer.precision for layer in run.read("0")} == {"float64"}  # vectors are computed in it
    assert run.device.clones == 2


def test_a_model_that_is_moved_off_the_gpu_is_read_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, SimulatedDevice(), mode="device").train(5)
    monkeypatch.setattr(Transfers, "is_accelerator", lambda *_: False)
    run.train(5)
    run.close()
    assert [layer.precision for layer in run.read("0")] == ["float64", "float32"]


def test_until_idle_cores_are_counted_a_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first count needs two looks, a second apart: many have idle cores."""
    is_known = False
    monkeypatch.setattr(Idle, "is_known", lambda _: is_known)
    run = Run(monkeypatch, SimulatedDevice()).train(5)
    assert [layer.precision for layer in run.read("0")] == ["float32"]
    is_known = True
    run.train(5)
    run.close()
    assert [layer.precision for layer in run.read("0")] == ["float32", "float64"]
