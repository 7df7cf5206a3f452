"""What counts as a step of the loop, with optimizers as people use them."""

import logging
import math
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from tests.loops import network, train, warnings


@pytest.fixture
def _new_accelerate() -> None:
    """Clear what accelerate shares within a process: a trainer of an earlier test may have left its loader there.

    At the end of a loader accelerate ends an accumulation early.
    """
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def loss_of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = (model(torch.randn(8, 40)) - 1).square().mean()
    return loss


@pytest.mark.parametrize("is_hooked", [True, False])
def test_a_mode_of_the_host_sees_its_own_operations_only(is_hooked: Any) -> None:
    """Such as the counter by which people state the FLOPs of a step."""
    counted = []
    for is_watched in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        given = [optimizer] if is_hooked else None
        monitor = esdmon.watch(model, given, every=1, budget=None, sinks=None, mode="sync") if is_watched else None
        with FlopCounterMode(display=False) as counter:
            for _ in range(3):
                loss_of(model).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if monitor is not None:
                    monitor.step()
        if monitor is not None:
            monitor.close()
            assert monitor.report is not None
            assert monitor.errors == ()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_accumulated_gradients_are_one_step() -> None:
    """Four batches, one update."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, sinks=None) as monitor:
        for k in range(12):
            loss_of(model).backward()  # type: ignore[no-untyped-call]
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert monitor.steps == 3


@pytest.mark.usefixtures("_new_accelerate")
def test_accelerates_optimizer_is_counted_where_it_steps() -> None:
    """Prepared objects go straight into watch; with accumulation over two batches every other call is a step."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink], strict=True) as monitor:
        for _ in range(6):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model))
                optimizer.step()
                optimizer.zero_grad()
    assert monitor.steps == 3
    assert [layer.name for layer in sink.reports[-1]] == ["0", "2"]
    assert all(layer.in_optimizer and layer.update_ratio > 0 for layer in sink.reports[-1])


@pytest.mark.usefixtures("_new_accelerate")
def test_accelerates_checkpoints_hold_the_monitor(tmp_path: Any) -> None:
    """It takes whatever has a state_dict and a load_state_dict."""
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    monitor = esdmon.watch(model, every=1, budget=None, sinks=None)
    accelerator.register_for_checkpointing(monitor)
    monitor.step()
    accelerator.save_state(str(tmp_path))
    monitor.step()
    accelerator.load_state(str(tmp_path))
    assert monitor.steps == 1
    monitor.close()


def test_of_several_optimizers_the_first_is_the_clock() -> None:
    """A GAN, say: the weights of both are known to train."""
    model = network()
    first = torch.optim.SGD(model.get_submodule("0").parameters(), lr=0.1)
    second = torch.optim.Adam(model.get_submodule("2").parameters())
    with esdmon.watch(model, [first, second], every=2, budget=None, sinks=None) as monitor:
        for k in range(4):
            loss_of(model).backward()  # type: ignore[no-untyped-call]
            first.step()
            if k % 2:
                second.step()
    assert monitor.steps == 4
    assert monitor.report is not None
    assert all(layer.in_optimizer for layer in monitor.report)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [([], "optimizer is an empty list"), ([3], "optimizer is of type int, not a torch.optim.Optimizer")],
    ids=["none", "no-optimizer"],
)
def test_optimizers_that_are_none_are_refused(optimizer: Any, message: str) -> None:
    """Before training."""
    with pytest.raises(InputError, match=message):
        esdmon.watch(network(), optimizer, sinks=None)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_a_compiled_step_counts_and_is_read_as_any_other() -> None:
    """The hook is not traced: the numbers are those of a step that was not compiled, to the last digit."""

    def run(*, compiled: bool) -> list[Any]:
        torch._dynamo.reset()
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        sink = MemorySink()
        with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink], strict=True) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                loss_of(model).backward()  # type: ignore[no-untyped-call]
                step()
        assert monitor.steps == 3
        return [layer.to_record() for report in sink.reports for layer in report]

    assert run(compiled=True) == run(compiled=False)


def test_a_scheduler_that_wraps_the_step_does_not_count_it_twice() -> None:
    """It replaces `optimizer.step` on the instance."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    with esdmon.watch(model, optimizer, every=1, sinks=None) as monitor:
        for _ in range(3):
            loss_of(model).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    assert monitor.steps == 3


def test_optimizers_that_step_in_backward_are_logged_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """One for each parameter: at the step of one, the others are old. Nothing is read then, which is logged once."""
    model = network()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter, optimizer in optimizers.items():

        def step(_parameter: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    with esdmon.watch(model, list(optimizers.values()), every=1, sinks=None) as monitor:
        for _ in range(3):
            loss_of(model).backward()  # type: ignore[no-untyped-call]
    assert monitor.steps == 0
    message, at_close = warnings(caplog)
    assert "the optimizer steps within backward()" in message
    assert "Pass hook=False to watch() as well, and call monitor.step() after backward()" in message
    assert "step() of the SGD that watch() was given was not called outside of backward()" in at_close
    with esdmon.watch(model, list(optimizers.values()), every=1, budget=None, sinks=None, hook=False) as monitor:
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        monitor.step()
    assert monitor.steps == 1
    assert monitor.report is not None
    assert [(layer.in_optimizer, layer.learning_rate) for layer in monitor.report] == [(True, 0.1)] * len(
        monitor.report
    )
    assert len(warnings(caplog)) == 2


def test_a_step_that_is_captured_into_a_cuda_graph_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels do not run when Python does. Without a GPU, torch's answer to whether it is capturing is set here."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, sinks=None) as monitor:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            optimizer.step()
        assert monitor.steps == 0
        optimizer.step()
    assert monitor.steps == 1


def test_an_exception_in_a_step_leaves_the_clock_right(caplog: pytest.LogCaptureFixture) -> None:
    """A closure that raises is a step that did not happen."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def out_of_memory() -> float:
        raise torch.OutOfMemoryError("no memory")

    with caplog.at_level(logging.WARNING, "esdmon"), esdmon.watch(model, optimizer, every=1, sinks=None) as monitor:
        with pytest.raises(torch.OutOfMemoryError, match="no memory"):
            optimizer.step(out_of_memory)
        optimizer.step()
    assert monitor.steps == 1
    assert caplog.text == ""


class Cautious(torch.optim.SGD):
    """An optimizer whose step calls its parent's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_inside_a_step_counts_once() -> None:
    """The parent's hooks fire too, once it has been made by itself."""
    model = network()
    torch.optim.SGD(network().parameters(), lr=0.1)
    optimizer = Cautious(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        train(model, optimizer, 3)
    assert monitor.steps == 3


def test_an_exception_in_a_step_does_not_stop_the_clock() -> None:
    """An out-of-memory error in a closure, say: the steps after it count."""
    model = network()
    optimizer = Cautious(model.parameters(), lr=0.1)

    def closure() -> float:
        raise RuntimeError("out of memory")

    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(closure)
        train(model, optimizer, 3)
    assert monitor.steps == 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_is_no_fault(fused: bool) -> None:  # noqa: FBT001
    """The hook of a fused optimizer fires all the same, that of another does not; the weights have not moved."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink]) as monitor:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 64)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert monitor.steps == (3 if fused else 2)
    assert [report["Linear"].status for report in sink.reports] == ["ok"] * monitor.steps
    ratios = [report["Linear"].update_ratio for report in sink.reports]
    assert [ratio > 0 for ratio in ratios[1:]] == ([False, True] if fused else [True])


def test_an_optimizer_that_calls_its_closure_often_steps_once() -> None:
    """LBFGS: weights inside the closure are trial points, and are not read."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(2, 64)).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=None) as monitor:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert calls > 1
    assert monitor.steps == 1


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an optimizer by its type, which never called its parent's __init__."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_wrapped_optimizers_are_unwrapped() -> None:
    """The inner one's hooks are used."""
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, Wrapper(inner), every=1, budget=None, sinks=[]) as monitor:
        train(model, inner, 2)
    assert monitor.steps == 2


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_torch_may_convert_and_load_a_watched_model_by_swapping_tensors(mode: Any, request: Any) -> None:
    """`swap_tensors` refuses a parameter to which anything holds a weak reference."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    request.addfinalizer(lambda: torch.__future__.set_swap_module_params_on_conversion(False))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with esdmon.watch(model, optimizer, every=2, budget=None, mode=mode, sinks=[]) as monitor:
        train(model, optimizer, 3)
        model.double().float()
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        train(model, optimizer, 3)
    assert monitor.errors == ()
    assert monitor.report is not None
    assert monitor.report.coverage.watched == sum(layer.n_parameters for layer in monitor.report)
