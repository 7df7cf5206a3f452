"""A monitor of weights on an accelerator, which is simulated: nothing waits, and one thread calls the device."""

import math
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import esdmon
from esdmon.plugins import Plugins
from esdmon.runtime.pipeline.planning import Planning
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.sinks import MemorySink
from esdmon.weights import Drift, Sending, Transfers
from esdmon.weights.device import sample
from tests.limits import set_limits
from tests.simulated_device import SimulatedDevice, train_step


class Training:
    """A small network whose weights are on the simulated device, and clones of them as they were read."""

    def __init__(self, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self._patches = monkeypatch
        monkeypatch.setattr("esdmon.watching.Transfers", lambda: Transfers({"cpu": device}))
        set_limits(monkeypatch, due_steps_under_way=20)  # of all due steps: the thread may be slow on a busy machine
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.sink = MemorySink()
        self.clones: dict[int, Tensor] = {}
        self.device = device
        given: dict[str, Any] = {"every": 5, "mode": "thread", "budget": None, "alerts": None} | options
        self.monitor = esdmon.watch(self.model, sinks=[self.sink], **given)

    def train(self, steps: int, between: Callable[[], object] = lambda: None) -> None:
        for _ in range(steps):
            train_step(self.device, self.model, self.optimizer)
            if self.monitor.step():
                self.clones[self.monitor.steps] = self.model[0].get_parameter("weight").detach().clone()
            between()

    def check(self) -> list[int]:
        """Close; compare what was read with the clones, and return the steps of the readings of the first layer."""
        with self._patches.context() as patches:
            patches.setattr("esdmon.runtime.reporting.time.sleep", lambda _seconds: self.device.run_side())
            self.monitor.close()
        assert (self.monitor.errors, self.monitor.dropped, self.device.broken) == ((), 0, [])
        layers = [layer for report in self.sink.reports for layer in report.new if layer.name == "0"]
        for layer in layers:
            sigma = torch.linalg.svdvals(self.clones[layer.step].double())
            assert layer.measures["lambda_max"] == pytest.approx(float(sigma.max() ** 2) / 96, rel=1e-5)
        return [layer.step for layer in layers]


@pytest.mark.parametrize("lag", [0, 1, 3], ids="copies are {} steps late".format)
@pytest.mark.parametrize("room", [True, False], ids=["room", "no room"])
def test_each_reading_is_of_its_step(lag: int, monkeypatch: pytest.MonkeyPatch, *, room: bool) -> None:
    """Weights that move on, graphs captured around each hook, a reading always in flight."""
    device = SimulatedDevice(room=math.inf if room else 0)
    run = Training(device, monkeypatch)

    def between() -> None:
        if run.monitor.steps % (lag + 1) == lag:
            device.run_side()

    run.train(60, between=between)
    assert device.waits == 0
    assert run.check() == list(range(5, 61, 5))
    moved = [layer.update_ratio for report in run.sink.reports for layer in report.new]
    assert all(0 < each < 1 for each in moved)


def test_copies_that_arrive_late_are_waited_for_at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()
    run = Training(device, monkeypatch)
    run.train(18)
    assert (device.waits, len(run.sink.reports)) == (0, 0)
    assert run.check() == [5, 10, 15]
    assert device.waits == 0


def test_a_state_is_saved_while_copies_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the samples of the last reading, for which it waits."""
    device = SimulatedDevice()
    run = Training(device, monkeypatch)
    run.train(7)
    state = run.monitor.state_dict()
    samples = state["parts"]["reader"]
    assert samples.keys() == {"0", "2"}
    assert all(sample.isfinite().all() for sample in samples.values())
    assert run.check() == [5]


def test_in_the_mode_sync_nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()
    run = Training(device, monkeypatch, mode="sync")
    run.train(10)
    assert [report.step for report in run.sink.reports] == [5, 10]
    assert run.check() == [5, 10]


def test_with_a_budget_drift_is_expected_from_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen layers are found out although no look is waited for: they are read twice, to learn their rate."""
    device = SimulatedDevice()
    run = Training(device, monkeypatch, budget=0.9)
    run.model[2].requires_grad_(False)  # noqa: FBT003
    run.train(60, between=device.run_side)
    run.monitor.flush()
    counts = [sum(layer.name == name for report in run.sink.reports for layer in report.new) for name in ("0", "2")]
    assert counts[0] >= 10
    assert counts[1] <= 3


@pytest.mark.parametrize("lag", [1, 3], ids="copies are {} steps late".format)
def test_what_is_screened_on_a_device_is_of_its_step(lag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of one layer while the other is read, on a queue that is behind the training; no due step waits."""
    device = SimulatedDevice(runs_at_once=False)
    monkeypatch.setattr("esdmon.runtime.pipeline.screening.WORTH", 0)
    monkeypatch.setattr("esdmon.runtime.pipeline.screening.SHARE", 1.0)
    monkeypatch.setattr("esdmon.schedule.priority.RARE", 0)
    monkeypatch.setattr(Planning, "here", lambda *_, **__: ["2"])
    run = Training(device, monkeypatch, every=lag + 2, budget=0.9, workers=0)

    def between() -> None:
        if run.monitor.steps % (lag + 2) == lag:
            device.run()
            device.run_side()

    run.train(40, between=between)
    assert (device.waits, device.broken) == (0, [])
    found = [each for report in run.sink.reports for each in report.screened if each.name == "0" and each.is_new]
    assert len(found) >= 3
    norms = {step: float(clone.double().norm()) for step, clone in run.clones.items()}
    assert [each.frobenius_norm for each in found] == pytest.approx([norms[each.step] for each in found], rel=1e-6)
    assert min(abs(after / before - 1) for before, after in pairwise(norms.values())) > 1e-5
    device.run()
    device.run_side()
    run.monitor.close()
    assert run.monitor.dropped == 0


class _Refuses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Refuse copies from CUDA to the CPU, which a fake tensor lets through."""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "cpu":
            on_device = [arg for arg in args if isinstance(arg, Tensor) and arg.device.type == "cuda"]
            assert not on_device, f"{func} waits for the device"
        return func(*args, **kwargs)


class _Sends:
    """CUDA, of which only the copies are not real."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []

    def is_capturing(self) -> bool:
        return False

    def has_room(self, _device: torch.device, _size: int) -> bool:
        return True

    def clone(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def send(self, tensor: Tensor, *, aside: bool) -> Sending:
        assert tensor.device.type == "cuda"
        self.sent.append(tensor)
        never = threading.Event()
        return Sending(torch.empty(tensor.shape, device="meta"), never.is_set, lambda: None, lambda: None, tensor)


@pytest.fixture
def _places_of_this_test() -> Iterator[None]:
    """Keep no places of elements that are fake."""
    sample._positions.cache_clear()
    yield
    sample._positions.cache_clear()


@pytest.mark.usefixtures("_places_of_this_test")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_hook_does_with_cuda_tensors_waits_for_nothing(dtype: torch.dtype) -> None:
    """Fake tensors have no numbers: whatever needs one in Python, or mixes devices, raises."""
    device = _Sends()
    model = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Conv2d(8, 16, 3, bias=False), nn.Linear(96, 96, bias=False))
    with FakeTensorMode(), _Refuses():  # type: ignore[no-untyped-call]
        for module in model:  # not by `to`, which a torch without CUDA refuses
            shape = module.get_parameter("weight").shape
            module.weight = nn.Parameter(torch.empty(shape, device="cuda", dtype=dtype))
        transfers = Transfers({"cuda": device})
        reader = Reader(model, Plugins(()), ReadingOptions(()), drift=Drift(transfers), transfers=transfers)
        assert reader.model.on_accelerator
        assert len(device.sent) == 3
        for step in (1, 2):
            reader.steps.begin()
            reader.steps.end()
            assert reader.steps.take() == {}
            reader.refresh()
            assert reader.drifts(["0", "1", "2"]) == {}
            assert all(0 < (reader.screen(name, step) or 0) < 1e-3 for name in ("0", "1", "2"))
            assert reader.screened() == []
            for name in ("0", "1", "2"):
                reader.begin(name, step, moved=reader.mark(name), copy=True)
            reader.advance()
    # Samples of all at first; then those of the step and of a look, what was screened, and each sample and weight.
    assert len(device.sent) == 3 + 2 * (1 + 1 + 1 + 6)
