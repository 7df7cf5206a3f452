"""The clock of a loop of one's own: what counts as a step, and the warning where the optimizer does not train."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

import esdmon
from esdmon.errors import InputError
from esdmon.runtime.clock import FOREIGN_STEPS
from esdmon.sinks import MemorySink
from tests.loops import backward, network, warnings


def test_an_optimizer_that_is_replaced_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """While training goes on, and once."""
    model = network()
    first = torch.optim.Adam(model.parameters())
    with esdmon.watch(model, first, every=1, budget=None, sinks=[]) as monitor:
        backward(model)
        first.step()
        second = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(FOREIGN_STEPS - 1):
            second.step()
        assert warnings(caplog) == []
        second.step()
        (message,) = warnings(caplog)
        for _ in range(50):
            second.step()
    assert monitor.steps == 1
    assert "the optimizer that watch() was given (Adam) does not train: SGD, which holds the same weights" in message
    assert "Give watch() the optimizer that trains, or none, and call monitor.step() after each step" in message
    assert len(warnings(caplog)) == 1


def test_optimizers_of_other_weights_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A generator beside its discriminator, or several of one model that share no weight."""
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[]) as monitor:
        for _ in range(3):
            backward(model)
            optimizer.step()
            for _ in range(2 * FOREIGN_STEPS):
                others.step()
    assert monitor.steps == 3
    assert warnings(caplog) == []


def stepped_by_hand(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)

    return step


def test_a_step_that_fires_no_hook_is_named_early(caplog: pytest.LogCaptureFixture) -> None:
    """One that is patched on the instance: gradients come, weights move, and nothing is counted."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = stepped_by_hand(optimizer)  # type: ignore[method-assign, assignment]
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[]) as monitor:
        for _ in range(6):
            backward(model)
            optimizer.step()
        (message,) = warnings(caplog)
    assert monitor.steps == 0
    assert "(SGD) does not train: weights change, and its step() was not called (0 steps counted)" in message
    _, at_close = warnings(caplog)
    assert "since no step was counted: step() of the SGD that watch() was given was not called" in at_close


def test_gradients_that_are_gathered_over_many_batches_are_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """As long as no weight moves, there is nothing to say."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]):
        for _ in range(25):
            model(torch.randn(4, 40)).square().mean().backward()
        optimizer.step()
    assert warnings(caplog) == []


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_closures_and_loaded_checkpoints_are_no_fault(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, is_wrapped: bool
) -> None:
    """LBFGS moves weights within its first step; a checkpoint that is loaded moves them once."""
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=12, tolerance_grad=0, tolerance_change=0)
    if is_wrapped:  # as the first torch.compile() of a process wraps the steps of LBFGS and SparseAdam
        wrapped = torch.compiler.disable(torch.optim.LBFGS.step)  # type: ignore[no-untyped-call]
        monkeypatch.setattr(torch.optim.LBFGS, "step", wrapped)

    def closure() -> Any:
        model.zero_grad()
        loss = model(torch.ones(4, 40)).square().mean()
        loss.backward()
        return loss

    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        backward(model)
        model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})
        for _ in range(12):
            model(torch.randn(4, 40)).square().mean().backward()
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert monitor.steps == 1
    assert warnings(caplog) == []


class Rebuilding(torch.optim.SGD):
    """An optimizer whose groups have a form of their own while it steps."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups = None  # type: ignore[assignment]
        return closure


def test_optimizers_of_any_form_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The hook sees every optimizer of the process."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        Rebuilding(network().parameters(), lr=0.1).step()
        backward(model)
        optimizer.step()
    assert monitor.errors == ()
    assert warnings(caplog) == []


def test_weights_that_move_on_after_the_last_step_are_named_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A step patched in mid-run fires nothing; torch counts the changes of a weight."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]):
        backward(model)
        optimizer.step()
        step = stepped_by_hand(optimizer)
        for _ in range(FOREIGN_STEPS):
            step()
    (message,) = warnings(caplog)
    assert f"weights have changed {FOREIGN_STEPS} times since its last step (1 step counted)" in message


def test_nothing_of_it_stays_on_weights_and_optimizers() -> None:
    """The hook on a weight goes with the first step, those on optimizers with `close()`, or with the monitor."""
    gc.collect()  # monitors of other tests, and their hooks
    hooks, before = _global_optimizer_post_hooks, len(_global_optimizer_post_hooks)
    model = network()
    weight = model.get_parameter("0.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = esdmon.watch(model, optimizer, every=1, budget=None, sinks=[])
    assert weight._post_accumulate_grad_hooks
    backward(model)
    optimizer.step()
    assert weight._post_accumulate_grad_hooks is None
    assert len(hooks) == before + 1
    monitor.close()
    assert (len(hooks), len(optimizer._optimizer_step_post_hooks)) == (before, 0)


def test_a_monitor_that_nobody_holds_is_closed(tmp_path: Any) -> None:
    """Sixty trials of a search in one process: no file, thread or hook of the earlier ones stays."""
    gc.collect()  # monitors of other tests, and their hooks
    hooks, before = _global_optimizer_post_hooks, len(_global_optimizer_post_hooks)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alive = weakref.ref(esdmon.watch(model, optimizer, every=1, budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"]))
    backward(model)
    optimizer.step()
    assert alive() is not None
    del model, optimizer
    gc.collect()
    assert alive() is None
    assert len(hooks) == before
    assert (tmp_path / "a.jsonl").read_text().count('"kind":"summary"') == 1


def test_a_cell_that_is_run_again_closes_the_monitor_of_before(caplog: pytest.LogCaptureFixture) -> None:
    """Each reading is taken, and paid for, once."""
    model, first, second = network(), MemorySink(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    older = esdmon.watch(model, optimizer, every=2, budget=None, sinks=[first])
    for _ in range(4):
        backward(model)
        optimizer.step()
    newer = esdmon.watch(model, optimizer, every=2, budget=None, sinks=[second])
    for _ in range(4):
        backward(model)
        optimizer.step()
    newer.close()
    assert older.closed
    assert [[report.step for report in sink.reports] for sink in (first, second)] == [[2, 4], [2, 4]]
    (message,) = warnings(caplog)
    assert "another monitor already watched this model and optimizer. It is closed now, at step 4" in message


@pytest.mark.parametrize("steps", [0, 1])
def test_a_cell_that_is_run_again_before_a_reading_logs_one_message(
    caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    """The loop needs no change, although the older monitor read nothing."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    older = esdmon.watch(model, optimizer, every=2, sinks=[])
    for _ in range(steps):
        backward(model)
        optimizer.step()
    newer = esdmon.watch(model, optimizer, every=2, sinks=[])
    (message,) = warnings(caplog)
    assert f"another monitor already watched this model and optimizer. It is closed now, at step {steps}" in message
    assert older.closed
    newer.close(is_complete=False)


def test_a_call_that_raises_leaves_the_older_monitor_open(caplog: pytest.LogCaptureFixture) -> None:
    """A notebook cell with a mistake ends nothing."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    older = esdmon.watch(model, optimizer, every=2, sinks=[])
    with pytest.raises(InputError, match="jsonl needs a path"):
        esdmon.watch(model, optimizer, every=2, sinks=["jsonl"])
    assert not older.closed
    backward(model)
    optimizer.step()
    assert older.steps == 1
    assert not warnings(caplog)
    older.close()


def test_a_second_watch_takes_over_the_address_of_the_first(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port of Prometheus is free once the older monitor is closed. Each run has one folder."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        sink = f"prometheus:{free.getsockname()[1]}"
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    older = esdmon.watch(model, optimizer, every=2, sinks=["auto", sink])
    with esdmon.watch(model, optimizer, every=2, sinks=["auto", sink]) as newer:
        backward(model)
        optimizer.step()
    assert older.closed
    assert newer.steps == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2
    message, *_ = warnings(caplog)  # and that the newer one read nothing
    assert "another monitor already watched this model" in message


def test_two_models_may_share_an_optimizer() -> None:
    """The monitor of one does not close that of the other."""
    generator, critic = network(), network()
    optimizer = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.1)
    with (
        esdmon.watch(generator, optimizer, every=2, budget=None, sinks=[]) as first,
        esdmon.watch(critic, optimizer, every=2, budget=None, sinks=[]) as second,
    ):
        backward(generator)
        optimizer.step()
    assert (first.steps, second.steps) == (1, 1)


def test_a_step_is_not_counted_twice(caplog: pytest.LogCaptureFixture) -> None:
    """By the optimizer's hook and by hand."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[]) as monitor:
        for _ in range(6):
            backward(model)
            optimizer.step()
            monitor.step()
    assert monitor.steps == 6
    (message,) = warnings(caplog)
    assert "monitor.step() is ignored, since watch() was given the optimizer and counts its steps" in message
