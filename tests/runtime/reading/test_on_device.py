"""Eigenvalues that are computed on a GPU in the hook, where no core is idle; the GPU is simulated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.options import modes
from esdmon.schedule.priority import ReadPriority
from esdmon.sinks import MemorySink
from esdmon.weights import Transfers
from tests.idle import Idle
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
