"""What a reading says of the optimizer that trains a weight."""

import math
from functools import partial
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


class Adapting(torch.optim.SGD):
    """Steps by `lr` times an estimate of its own, `d`, as D-Adaptation and Prodigy do."""

    def factor(self, group: dict[str, Any]) -> float:
        group["d"] = 2 * group.get("d", 0.001)
        return float(group["d"])

    def step(self, closure: Any = None) -> Any:
        given = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= self.factor(group)
        super().step(closure)
        for group, rate in zip(self.param_groups, given, strict=True):
            group["lr"] = rate


class ScheduleFree(Adapting):
    """Warms up over four steps by itself and keeps `lr` as it was given, as schedule-free optimizers do."""

    def factor(self, group: dict[str, Any]) -> float:
        group["k"] = group.get("k", 0) + 1
        group["scheduled_lr"] = group["lr"] * group["k"] / 4
        return float(group["k"]) / 4


class Unknown(torch.optim.SGD):
    """Its learning rate is a tensor on a device that would have to be waited for."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.param_groups[0]["lr"] = torch.ones((), device="meta")


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (partial(torch.optim.AdamW, lr=torch.tensor(0.5)), [0.5, 0.5, 0.5]),
        (partial(Adapting, lr=0.5), [0.001, 0.002, 0.004]),
        (partial(ScheduleFree, lr=0.5), [0.125, 0.25, 0.375]),
        (partial(Unknown, lr=0.5), [math.nan]),
    ],
)
def test_the_learning_rate_is_what_the_step_was_taken_with(optimizer: Any, rates: list[float]) -> None:
    """Also where the optimizer adapts or schedules it by itself, and as a tensor on the CPU."""
    model, sink = nn.Sequential(nn.Linear(24, 32)), MemorySink()
    trained = optimizer(model.parameters())
    with esdmon.watch(model, trained, every=1, budget=None, sinks=[sink], mode="sync"):
        for _ in rates:
            trained.zero_grad()
            model(torch.randn(8, 24)).square().mean().backward()
            trained.step()
    assert [report["0"].learning_rate for report in sink.reports] == pytest.approx(rates, nan_ok=True)
