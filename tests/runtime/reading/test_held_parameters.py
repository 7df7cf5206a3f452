"""What a reading says of the optimizer that trains a weight."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.sinks import MemorySink


class Container(torch.optim.Optimizer):
    """An optimizer that holds others, as torchtitan's `OptimizersContainer`: its own groups hold parameters alone."""

    def __init__(self, model: nn.Module, *held: torch.optim.Optimizer, by_name: bool = False) -> None:
        super().__init__(model.parameters(), {})
        self.optimizers: Any = dict(enumerate(held)) if by_name else list(held)
        self.held = held

    def step(self, closure: Any = None) -> Any:
        for optimizer in self.held:
            optimizer.step()


@pytest.mark.parametrize("by_name", [False, True])
def test_of_a_container_the_optimizers_in_it_say_what_they_train_with(*, by_name: bool) -> None:
    """The learning rate, the weight decay and the momentum of each weight; steps are those of the container."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24))
    optimizer = Container(
        model,
        torch.optim.AdamW(model[0].parameters(), lr=0.01, weight_decay=0.1),
        torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9),
        by_name=by_name,
    )
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=2, sinks=[sink], layers=["*", "*/momentum"]) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 24)).square().mean().backward()
            optimizer.step()
    report = sink.reports[-1]
    assert (monitor.steps, report.step) == (4, 4)
    assert [(layer.learning_rate, layer.weight_decay) for layer in (report["0"], report["1"])] == [
        (0.01, 0.1),
        (0.1, 0),
    ]
    assert [report[f"{name}/momentum"].status for name in ("0", "1")] == ["ok", "ok"]
    assert report["0"].in_optimizer


def test_a_container_without_optimizers_knows_no_rate() -> None:
    """NaN in the record."""
    model = nn.Sequential(nn.Linear(24, 32))
    optimizer = Container(model)
    with esdmon.watch(model, optimizer, every=1, sinks=[]) as monitor:
        optimizer.step()
    assert monitor.report is not None
    assert math.isnan(monitor.report["0"].learning_rate)


def test_what_requires_gradients_and_is_in_no_optimizer_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As a head that was forgotten, or a copy beside the one that trains; frozen layers are left out on purpose."""
    model = nn.ModuleDict({name: nn.Linear(24, 32) for name in ("body", "head", "frozen")})
    model["frozen"].requires_grad_(requires_grad=False)
    with caplog.at_level("INFO", "esdmon"):
        esdmon.watch(model, torch.optim.SGD(model["body"].parameters(), lr=0.1), sinks=[]).close(is_complete=False)
        assert "esdmon: 1 of 3 matrices require gradients and are not in the optimizer, so another one" in caplog.text
        assert caplog.text.count("or none: head") == 1
        caplog.clear()
        esdmon.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), sinks=[]).close(is_complete=False)
        esdmon.watch(model, sinks=[]).close(is_complete=False)
        assert "not in the optimizer" not in caplog.text
