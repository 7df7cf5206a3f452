"""A model that trains while it is read: in the hook, and in a thread beside it."""

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.errors import InputError
from esdmon.spectrum import Spectrum
from tests.runtime.workers.training import MODES, Training, waiting_measure


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

    def records_of(run: Training) -> list[dict[str, Any]]:
        # Where a due step was left out, since the thread was not through, a weight has moved for longer.
        late = ("emitted_step", "age", "update_ratio", "spectral_distance")
        return [
            {key: value for key, value in layer.to_record().items() if key not in late}
            for report in run.sink.reports
            for layer in report.new
        ]

    by_step = {record["step"]: record for record in records_of(runs["thread"]) if record["name"] == "0"}
    assert list(by_step) == sorted(by_step)
    assert records_of(runs["thread"]) == [r for r in records_of(runs["sync"]) if r["step"] in by_step]
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


def test_close_waits_no_longer_than_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
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
