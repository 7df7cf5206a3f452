"""The clock of a loop of one's own: what counts as a step, and the warning where the optimizer does not train."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import esdmon
from esdmon.errors import InputError
from esdmon.runtime.clock import FOREIGN_STEPS
from esdmon.sinks import MemorySink


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 24))


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.randn(4, 24)).square().mean().backward()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation, which many step in two parts (Foret et al. 2021)."""

    def __init__(self, parameters: Any, base: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.old: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.old[parameter] = parameter.data.clone()
                parameter.add_(parameter.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter, old in self.old.items():
            parameter.data = old
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> Any:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@pytest.mark.parametrize("by_hand", [True, False])
def test_an_optimizer_that_is_stepped_in_parts_counts_each_step_once(
    by_hand: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own `step` is never called then; that of the optimizer inside it is."""
    model, sink = network(), MemorySink()
    optimizer = Sam(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[sink]) as monitor:
        for _ in range(8):
            backward(model)
            if by_hand:
                optimizer.first_step()
                backward(model)
                optimizer.second_step()
            else:
                optimizer.step(lambda: backward(model))
    assert monitor.steps == 8
    assert [report.step for report in sink.reports] == [2, 4, 6, 8]
    assert warnings(caplog) == []


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
            model(torch.randn(4, 24)).square().mean().backward()
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
        loss = model(torch.ones(4, 24)).square().mean()
        loss.backward()
        return loss

    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        backward(model)
        model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})
        for _ in range(12):
            model(torch.randn(4, 24)).square().mean().backward()
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
    assert "this model and optimizer were watched already; that monitor is closed at step 4" in message


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


class Handing(torch.optim.Optimizer):
    """A wrapper that hands on what it does not have, hooks too, as Fabric's does."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["optimizer"], name)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def fabric_setup(package: str) -> Callable[[torch.optim.Optimizer], Any]:
    def wrap(optimizer: torch.optim.Optimizer) -> Any:
        return pytest.importorskip(package).Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)

    return wrap


@pytest.mark.parametrize(
    "wrap", [Handing, fabric_setup("lightning.fabric"), fabric_setup("lightning_fabric")], ids=["own", "l", "lf"]
)
@pytest.mark.filterwarnings("ignore")  # the packages warn of their own dependencies
def test_a_wrapper_that_hands_on_the_hooks_counts_each_step_once(wrap: Callable[[Any], Any]) -> None:
    """The hooks are those of the optimizer inside it."""
    model = network()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[]) as monitor:
        for _ in range(6):
            backward(model)
            optimizer.step()
    assert monitor.steps == 6


class NoHooks(torch.optim.Optimizer):
    """A wrapper that never initialises its parent, as Lookahead and its kin."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


class Several:
    """A container of optimizers."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers


class Named:
    """One whose optimizers have names, each in a wrapper."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.by_name = {"weights": SimpleNamespace(optimizer=optimizer)}


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            NoHooks,
            r"optimizer is a NoHooks.*Leave it out, or give watch\(\) the optimizer inside it, \.base, with hook=False",
        ),
        (
            NoHooks,
            r"call monitor\.step\(\).*If nothing writes weights after the step of \.base, give watch\(\) \.base alone",
        ),
        (Several, r"optimizer is a Several.*Give watch\(\) a list of the optimizers inside it, \.optimizers, or leave"),
        (Named, r"optimizer is a Named.*Give watch\(\) a list of the optimizers inside it, \.by_name, or leave"),
        (lambda _: Several(), r"optimizer is a Several.*Leave it out and call monitor\.step\(\)"),
        (lambda _: network(), r"optimizer is a Sequential.*Are model and optimizer swapped\?"),
        (lambda _: 5, "optimizer is a int"),
    ],
)
def test_what_has_no_hooks_is_refused_before_training(wrap: Callable[[Any], Any], message: str) -> None:
    """With the way out."""
    model = network()
    with pytest.raises(InputError, match=message):
        esdmon.watch(model, wrap(torch.optim.SGD(model.parameters(), lr=0.1)), sinks=[])
