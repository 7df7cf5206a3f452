"""What is logged where the weights that are watched are not those that train."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import esdmon


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
    assert caplog.text.count("the parameters of 0, 2 were replaced, and the optimizer still holds those of before") == (
        0 if is_updated else 1
    )
