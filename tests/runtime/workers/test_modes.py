"""A model that trains while it is read: in the hook, and in a thread beside it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.clocks import FakeClock, set_clock
from tests.limits import set_limits

MODES = ["sync", "thread"]


class Training:
    """A small network on noise, watched or not."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.sink = MemorySink()
        self.monitor: esdmon.Monitor | None = None
        if options:
            self.monitor = esdmon.watch(self.model, self.optimizer, sinks=[self.sink], **options)
        self.losses: list[float] = []

    def train(self, steps: int) -> "Training":
        for _ in range(steps):
            loss = (self.model(torch.randn(8, 64)) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return self

    @property
    def watched(self) -> esdmon.Monitor:
        assert self.monitor is not None
        return self.monitor

    def state(self) -> list[Tensor]:
        state = [x for entry in self.optimizer.state.values() for x in entry.values()]
        return [*self.model.parameters(), *state, torch.get_rng_state()]


def slow_measure(clock: FakeClock) -> type:
    """A plugin whose measure takes 20 ms, by a clock that nothing else moves."""

    def wait(_spectrum: Spectrum) -> float:
        clock.passes(0.02)
        return 1.0

    class Slow:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("slow", wait)]

    return Slow


def waiting_measure(gate: threading.Event) -> type:
    """A plugin whose measure waits for a gate to open."""

    class Waiting:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("waiting", lambda _spectrum: float(gate.wait(60)))]

    return Waiting


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", [None, 0.01, 1.0], ids=str)
def test_training_is_the_same_to_the_last_bit(mode: str, budget: float | None) -> None:
    """Losses, weights, optimizer state, random state, threads; and nothing is left on the modules."""
    attributes = [set(vars(module)) for module in Training().model.modules()]
    threads, before = torch.get_num_threads(), set(threading.enumerate())
    watched = Training(mode=mode, budget=budget, every=1).train(30)
    watched.watched.close()
    plain = Training().train(30)
    assert watched.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(watched.state()[:-1], plain.state()[:-1], strict=True))
    assert [set(vars(module)) for module in watched.model.modules()] == attributes
    assert watched.sink.reports
    assert torch.get_num_threads() == threads
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_both_modes_read_the_same() -> None:
    """The weights of the step that was due, though the thread comes to them later; in the order of the steps."""
    runs = {mode: Training(mode=mode, budget=None, every=3).train(30) for mode in MODES}
    for run in runs.values():
        run.watched.close()

    def told(run: Training) -> list[dict[str, Any]]:
        # Where a due step was left out, since the thread was not through, a weight has moved for longer.
        late = ("emitted_step", "age", "update_ratio", "spectral_distance")
        return [
            {key: value for key, value in layer.to_record().items() if key not in late}
            for report in run.sink.reports
            for layer in report.new
        ]

    by_step = {record["step"]: record for record in told(runs["thread"]) if record["name"] == "0"}
    assert list(by_step) == sorted(by_step)
    assert told(runs["thread"]) == [r for r in told(runs["sync"]) if r["step"] in by_step]
    assert len(by_step) >= 2


def test_the_thread_does_not_hold_up_the_loop() -> None:
    """The steps go on while a reading waits for a gate that opens after them; the reading is there at the end."""
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=5, plugins=[waiting_measure(gate)()]).train(9)
    assert run.sink.reports == []
    gate.set()
    run.watched.flush()
    assert [report.step for report in run.sink.reports] == [5]
    assert [layer.age for layer in run.sink.reports[0]] == [0, 0, 0]
    run.watched.close()


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    """And does not block: four due steps may be under way. Logged once."""
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=1, plugins=[waiting_measure(gate)()])
    run.train(12)
    gate.set()
    run.watched.close()
    assert [report.step for report in run.sink.reports] == [1, 2, 3, 4]
    assert all(len(report.new) == 3 for report in run.sink.reports)
    assert run.watched.dropped == 3 * (12 - len(run.sink.reports))
    assert caplog.text.count("because the queue is full: increase every=") == 1


def test_copies_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is always taken, however large; what there is no room for is first the next time."""
    set_limits(monkeypatch, copied_bytes=1)
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=6, plugins=[waiting_measure(gate)()])
    for _ in range(6):
        run.train(6)
        gate.set()
        run.watched.flush()
        gate.clear()
    run.watched.close()
    names = [[layer.name for layer in report.new] for report in run.sink.reports]
    assert {len(each) for each in names} == {1}
    assert {name for each in names[:3] for name in each} == {"0", "2", "4"}
    assert run.watched.dropped == 2 * 6


def test_a_checkpoint_waits_for_no_reading() -> None:
    """What is under way is not part of the state, and goes on; a later state holds it."""
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=4, plugins=[waiting_measure(gate)()]).train(4)
    state = run.watched.state_dict()
    assert state["parts"]["readings"] == {}
    assert run.watched._readings.under_way
    gate.set()
    run.watched.flush()
    state = run.watched.state_dict()
    assert {name: layer["step"] for name, layer in state["parts"]["readings"].items()} == dict.fromkeys("024", 4)
    run.watched.close()


def test_close_waits_no_longer_than_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What is not finished then is lost, and logged: the gate opens only after `close`."""
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=1, plugins=[waiting_measure(gate)()]).train(1)
    run.watched.close(timeout=0.05)
    gate.set()
    assert run.watched.dropped == 3
    assert [report.new for report in run.sink.reports] == [()]
    assert "lost 3 readings of step 1, not finished in time" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_strict_raises_what_fails_in_a_reading(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loop, also what failed in the thread."""

    def broken(*_args: object, **_options: object) -> Spectrum:
        raise ZeroDivisionError("in the numerics")

    monkeypatch.setattr("esdmon.runtime.reading.computing.read_spectrum", broken)
    run = Training(mode=mode, budget=None, every=1, strict=True)

    def until_it_is_there() -> None:
        for _ in range(3000):
            run.train(1)
            time.sleep(0.01)

    with pytest.raises(ZeroDivisionError, match="in the numerics"):
        until_it_is_there()


@pytest.mark.parametrize(
    ("threads", "cores", "expected"), [(1, 2, "sync"), (1, 4, "thread"), (8, 16, "sync"), (4, 16, "thread")]
)
def test_auto_looks_at_what_is_idle(threads: int, cores: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the cores that a system counts are often no cores of their own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("esdmon.options.modes.cores", lambda job: job * cores)
    gate = threading.Event()
    if expected == "sync":
        gate.set()
    run = Training(mode="auto", every=1, plugins=[waiting_measure(gate)()])
    run.train(1)
    assert bool(run.sink.reports) == (expected == "sync")
    gate.set()
    run.watched.close()


def test_a_mode_that_is_none_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(InputError, match="mode= must be one of auto, sync, thread, process, device; got 'fork'"):
        Training(mode="fork", every=1)


def changed_after(change: Callable[[Training], None]) -> list[dict[str, int]]:
    """The steps of each layer's reading, at due steps before and after a change to the model."""
    run = Training(mode="sync", budget=None, every=2).train(4)
    change(run)
    run.train(4)
    run.watched.close()
    return [{layer.name: layer.step for layer in report} for report in run.sink.reports]


def test_a_layer_that_is_replaced_is_read_as_it_is_now(caplog: pytest.LogCaptureFixture) -> None:
    """The model is what the user's loop trains, and not what it was at the start."""

    def replace(run: Training) -> None:
        run.model[2] = nn.Linear(96, 80, bias=False)
        run.model.add_module("5", nn.Linear(64, 64))

    steps = changed_after(replace)
    assert steps[-1] == {"0": 8, "2": 8, "4": 8, "5": 8}
    assert caplog.text.count("the parameters of the model have changed: watching") == 1


def test_a_model_that_loses_all_its_weights_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The last that is known stays."""

    def strip(run: Training) -> None:
        for name in ("0", "2", "4"):
            run.model.set_submodule(name, nn.Identity())

    run = Training(mode="sync", budget=None, every=1).train(1)
    strip(run)
    for _ in range(6):
        run.watched.hooked_step()
    run.watched.close()
    assert run.watched.report is not None
    assert "Sequential has no weight matrix to read" in run.watched.errors[0].message
    assert caplog.text.count("no weight matrix to read") == 1


def test_frozen_weights_are_read_once_and_show_their_age() -> None:
    """Repeated, they keep the step of their reading and are unchanged; moved by hand, they are read again."""
    model = nn.Sequential(nn.Linear(64, 96)).requires_grad_(requires_grad=False)
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink]) as monitor:
        for _ in range(3):
            monitor.step()
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(2)
        monitor.step()
    first, _, third, moved = (report["0"] for report in sink.reports)
    assert (third.step, third.emitted_step, third.age, third.unchanged) == (1, 3, 2, True)
    assert third.measures is first.measures
    assert [len(report.new) for report in sink.reports] == [1, 0, 0, 1]
    assert (moved.step, moved.age, moved.unchanged) == (4, 0, False)
    assert moved.update_ratio == pytest.approx(1)
    assert moved.measures["lambda_max"] == pytest.approx(4 * first.measures["lambda_max"])


def test_a_budget_sweeps_a_model_and_says_how_old_its_parts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many layers a few are read at each due step, the others carry the step of their own weights."""
    set_limits(monkeypatch, advance_seconds=0.5)
    slow = slow_measure(set_clock(monkeypatch))()
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(40)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=1e-9, sinks=[sink], plugins=[slow]) as monitor:
        for _ in range(100):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    first, last = sink.reports[0], sink.reports[-1]
    assert len(first.new) == 25  # of 20 ms each, in the half second that is advanced
    assert first.waiting
    with pytest.raises(KeyError, match="was not read yet: it waits for the budget"):
        first[first.waiting[0]]
    assert "not read yet: " in str(first)
    assert last.waiting == ()
    assert [len(report.new) for report in sink.reports[-20:]] == [1] * 20
    assert 39 <= last.summary["age_max"] <= 80
    assert last.summary["age_max"] == max(layer.age for layer in last)
    assert "39 of 40 read earlier, the oldest at step" in str(last)
    assert monitor.overhead > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_in_mixed_precision_is_the_same_to_the_last_bit(mode: str) -> None:
    """A weight that is used many times under autocast is cast once, from a cache of the whole process."""

    def run(**options: Any) -> list[float]:
        torch.manual_seed(0)
        layer = nn.Linear(64, 64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        monitor = esdmon.watch(layer, optimizer, sinks=None, **options) if options else None
        losses = []
        for _ in range(30):
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.randn(32, 64)
                for _ in range(30):
                    x = torch.tanh(layer(x))
            loss: Tensor = (x.float() - 0.1).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        if monitor is not None:
            monitor.close()
        return losses

    assert run(mode=mode, budget=None, every=1) == run()


class Noisy(nn.Module):
    """A parametrisation that draws at random."""

    def forward(self, weight: Tensor) -> Tensor:
        """Other numbers at each look."""
        return weight + 0.01 * torch.randn_like(weight)


@pytest.mark.parametrize("mode", MODES)
def test_a_parametrisation_that_draws_takes_nothing_from_the_random_state(mode: str) -> None:
    """The user's next random number is the same."""
    model = nn.Sequential(nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", Noisy())
    with esdmon.watch(model, every=1, budget=None, mode=mode, sinks=None) as monitor:
        state = torch.get_rng_state()
        monitor.step()
        monitor.flush()
        assert torch.equal(state, torch.get_rng_state())


def test_a_weight_that_is_computed_otherwise_from_now_on_is_found() -> None:
    """Pruning that is made permanent takes away what the weight was computed from; a norm that is added is at rest."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    prune.random_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, mode="sync", sinks=[sink]) as monitor:
        monitor.step()
        prune.remove(model[0], "weight")  # type: ignore[no-untyped-call]
        monitor.step()
        nn.utils.parametrizations.spectral_norm(model[0])
        state = {name: value.clone() for name, value in model.state_dict().items()}
        monitor.step()
    assert [report["0"].status for report in sink.reports] == ["ok"] * 3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sink.reports[-1]["0"].measures["spectral_norm"] == pytest.approx(1, rel=0.1)
    assert monitor.errors == ()


def test_a_reference_stays_what_it_was_when_the_model_is_found_anew() -> None:
    """W₀ was copied at the start, and not again."""
    model = nn.Sequential(nn.Linear(64, 64))
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink], reference=model.state_dict()) as monitor:
        for _ in range(2):
            with torch.no_grad():
                model.get_parameter("0.weight").add_(torch.randn(64, 64) * 0.01)
            monitor.step()
            model.add_module("more", nn.Linear(64, 64))
    first, second = (report["0"].measures["frobenius_norm"] for report in sink.reports)
    assert 1.2 * first < second < 1.7 * first


def test_what_there_was_no_room_for_is_read_later_though_it_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights, too."""
    set_limits(monkeypatch, copied_bytes=1)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)]).requires_grad_(requires_grad=False)
    with esdmon.watch(model, every=1, budget=None, mode="thread", sinks=None) as monitor:
        for _ in range(6):
            monitor.step()
            monitor.flush()
        assert monitor.report is not None
        assert monitor.report.waiting == ()


def test_what_cannot_be_read_does_not_take_the_turns_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen layers that equal the reference have nothing to read, which is seen in no time."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(20)])
    sink = MemorySink()
    slow = slow_measure(set_clock(monkeypatch))()
    with esdmon.watch(
        model, every=1, budget=1e-9, sinks=[sink], reference=model.state_dict(), plugins=[slow]
    ) as monitor:
        for _ in range(80):
            with torch.no_grad():
                for layer in list(model)[16:]:
                    layer.get_parameter("weight").add_(torch.randn(64, 64) * 0.01)
            monitor.step()
    read = [layer.name for report in sink.reports[-30:] for layer in report.new]
    assert {"16", "17", "18", "19"} <= set(read)
    assert len([name for name in read if int(name) >= 16]) > len(read) / 2


def test_a_budget_that_cannot_be_held_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One matrix at each step is more than a millionth of the run."""
    set_limits(monkeypatch, advance_seconds=1e-8)
    run = Training(mode="sync", budget=1e-6, every=1).train(30)
    run.watched.close()
    assert caplog.text.count("more than budget=1e-06, although only one matrix is read at each due step") == 1
