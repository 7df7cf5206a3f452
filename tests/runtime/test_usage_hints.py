"""What is logged where the weights that are watched are not those that train."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from tests.jsonl import records_in


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))


def itself(model: nn.Module) -> nn.Module:
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: esdmon.Monitor | None = None) -> None:
    """80 steps."""
    for _ in range(80):
        model(torch.ones(1, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.step()


@pytest.mark.parametrize("watched", [itself, deepcopy], ids=["model", "copy"])
def test_weights_that_never_change_are_named(
    watched: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that was made before training is read in vain; one line says so, and none where weights move."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with esdmon.watch(watched(model), every=10, budget=None, sinks=None) as monitor:
        train(model, optimizer, monitor)
    still = "none of the weights that are watched has changed by step 80, so readings say nothing of the training"
    assert caplog.text.count(still) == (0 if watched is itself else 1)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_dict_that_the_loop_replaces_is_named(is_new: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Parameters of `torch.func` require no gradient; the watched dict may be left behind by a new one at each step."""
    model = small()
    parameters = watched = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = torch.func.grad(lambda given: torch.func.functional_call(model, given, torch.ones(1, 16)).square().sum())
    with esdmon.watch(watched, every=10, budget=None, sinks=None) as monitor:
        for _ in range(80):
            stepped = {name: parameters[name] - 0.01 * gradient for name, gradient in loss(parameters).items()}
            if is_new:
                parameters = stepped
            else:
                parameters.update(stepped)
            monitor.step()
    assert monitor.report is not None
    assert all(layer.trainable for layer in monitor.report)
    remedy = "if the loop makes a new dict at each step, put its tensors into the watched one, by update()"
    assert caplog.text.count(remedy) == is_new


def test_weights_that_are_frozen_are_not_expected_to_change(caplog: pytest.LogCaptureFixture) -> None:
    """As those of a teacher."""
    with esdmon.watch(small().requires_grad_(requires_grad=False), every=10, budget=None, sinks=None) as monitor:
        for _ in range(80):
            monitor.step()
    assert "has changed" not in caplog.text


@pytest.mark.parametrize("is_updated", [False, True])
def test_parameters_that_are_replaced_under_an_optimizer_are_named(
    is_updated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """`load_state_dict(assign=True)` makes new ones, and the optimizer trains the old ones on."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with esdmon.watch(model, optimizer, every=10, budget=None, sinks=None) as monitor:
        train(model, optimizer)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        if is_updated:
            optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer)
    assert monitor.errors == ()
    assert caplog.text.count("the parameters of 0, 2 were replaced, and the optimizer still holds the old ones") == (
        0 if is_updated else 1
    )


WHOLE = [np.int64(2), torch.tensor(2), 2]


@pytest.mark.parametrize("given", WHOLE, ids=lambda given: type(given).__name__)
def test_steps_of_any_library_are_written_as_numbers(given: Any, tmp_path: Path) -> None:
    """The number of steps, the host's step, and options; a checkpoint with the state is read without unpickling."""
    path = tmp_path / "a.jsonl"
    limits: dict[str, Any] = {"first_step": given, "min_eigenvalues": given, "workers": given}
    with esdmon.watch(small(), every=given, budget=None, sinks=f"jsonl:{path}", **limits) as monitor:
        monitor.step(given, host_step=given)
        torch.save(monitor.state_dict(), tmp_path / "state.pt")
    assert monitor.errors == ()
    assert (monitor.steps, type(monitor.steps)) == (4, int)
    assert {line["step"] for line in records_in(path)} == {4}
    assert {line["host_step"] for line in records_in(path) if line["kind"] == "layer"} == {2}
    torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("given", [torch.tensor(0.5), 1.5, -1, "epoch 1", None], ids=repr)
def test_anything_but_a_number_of_steps_counts_as_one(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Such as the loss: the loop goes on, and one line names it."""
    with esdmon.watch(small(), every=2, budget=None, sinks=None) as monitor:
        for _ in range(4):
            monitor.step(given)
    assert monitor.steps == 4
    assert caplog.text.count(f"monitor.step({given!r}) counts as one step") == 1


@pytest.mark.parametrize("start", [0, 1, 500])
def test_the_number_of_the_step_in_place_of_a_count_is_logged(start: int, caplog: pytest.LogCaptureFixture) -> None:
    """As W&B's `log(step=)` takes it: steps would be counted 0 + 1 + 2 + …"""
    with esdmon.watch(small(), every=1000, budget=None, sinks=None) as monitor:
        for step in range(start, start + 20):
            monitor.step(step)
    assert caplog.text.count("it takes the number of steps since the last call") == 1


def test_numbers_of_steps_that_change_are_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """Such as of a loop that counts a few steps at once, and the rest of an epoch."""
    with esdmon.watch(small(), every=1000, budget=None, sinks=None) as monitor:
        for steps in 3 * [10, 10, 10, 3, 4, 5, 6, 1, 0, 1, 2, 3]:
            monitor.step(steps)
    assert "since the last call" not in caplog.text


def test_a_step_of_the_host_that_is_not_whole_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Readings have the number of steps only."""
    given: Any = 1.5
    with esdmon.watch(small(), every=2, budget=None, sinks=None) as monitor:
        for _ in range(4):
            monitor.step(host_step=given)
    assert monitor.report is not None
    assert monitor.report.host_step is None
    assert caplog.text.count("host_step=1.5 is not a whole number") == 1
