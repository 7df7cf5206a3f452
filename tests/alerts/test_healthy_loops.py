"""Trainings that go well and do what looks like a fault on purpose: none raises a warning beyond those it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

import esdmon
from esdmon import Monitor
from tests.benchmarks.healthy import batches, mlp, small_images


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def watched(model: nn.Module, optimizer: Optimizer, every: int = 20) -> Monitor:
    return esdmon.watch(model, optimizer, every=every, budget=None, mode="sync", sinks=[])


def digits(steps: int, kept: Callable[[Tensor], Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of digits, of those with a label that is kept."""
    images, labels = small_images()[0]
    chosen = torch.ones_like(labels, dtype=torch.bool) if kept is None else kept(labels)
    return batches((images[chosen], labels[chosen]), 64, steps, seed=0)


def descend(model: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def accuracy(model: nn.Module) -> float:
    images, labels = small_images()[1]
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def warnings_of(monitor: Monitor) -> list[tuple[str, int]]:
    """Return rule and step of each alert that may wake somebody, and check that nothing failed inside."""
    assert monitor.errors == ()
    return [(each.rule, each.step) for each in monitor.alerts if each.severity in ("warning", "error")]


def test_two_heads_that_are_trained_in_turn() -> None:
    """The first pause of a head looks like a fault; later pauses of the same length do not."""
    body = nn.Sequential(*mlp(64, 256, 128), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(128, 10), nn.Linear(128, 2)])
    model = nn.ModuleDict({"body": body, "heads": heads})
    optimizer = Adam(model.parameters(), lr=1e-3)
    with watched(model, optimizer) as monitor:
        for step, (inputs, labels) in enumerate(digits(800)):
            task = step // 100 % 2
            descend(nn.Sequential(body, heads[task]), optimizer, inputs, labels % 2 if task else labels)
    assert accuracy(nn.Sequential(body, heads[0])) > 0.95
    assert [rule for rule, step in warnings_of(monitor) if step > 300] == []


def test_an_easy_first_task_whose_loss_vanishes() -> None:
    """Decay moves all layers for the most part, the head a little less than the others."""
    model = mlp(64, 256, 128, 10)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    with watched(model, optimizer) as monitor:
        for inputs, labels in digits(300, lambda labels: labels < 2):
            descend(model, optimizer, inputs, labels)
    assert warnings_of(monitor) == []


def test_lbfgs_that_has_converged() -> None:
    """A fit of a sine, in which it finds no step any more."""
    points = torch.linspace(0, 1, 64)[:, None]
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = LBFGS(model.parameters(), max_iter=10, tolerance_change=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(points), torch.sin(math.pi * points))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with watched(model, optimizer, every=5) as monitor:
        for _ in range(150):
            loss = optimizer.step(closure).item()  # type: ignore[no-untyped-call]
    assert loss < 1e-3
    assert warnings_of(monitor) == []
    assert "LBFGS" in next(each.message for each in monitor.alerts if each.rule == "dead_layer")


def test_adapters_that_are_merged_and_begun_again() -> None:
    """ReLoRA: V. Lialin and others, "ReLoRA: high-rank training through low-rank updates" (ICLR 2024)."""
    base = mlp(64, 256, 192, 10)
    optimizer: Optimizer = Adam(base.parameters(), lr=1e-3)
    for inputs, labels in digits(300, lambda labels: labels < 5):
        descend(base, optimizer, inputs, labels)
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["1", "3", "5"]))
    optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    with watched(model, optimizer) as monitor:
        for step, (inputs, labels) in enumerate(digits(960)):
            descend(model, optimizer, inputs, labels)
            if step % 300 == 299:
                model.merge_adapter()
                for layer in model.modules():
                    if isinstance(layer, peft.tuners.lora.Linear):
                        layer.merged_adapters.clear()
                        layer.reset_lora_parameters("default", init_lora_weights=True)
                optimizer.state.clear()
    assert accuracy(model) > 0.95
    assert [rule for rule, _ in warnings_of(monitor) if rule == "scale_collapse"] == []


def test_units_that_are_pruned_by_masks() -> None:
    """A fifth of the units of each hidden layer, three times."""
    model = mlp(64, 256, 128, 10)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    with watched(model, optimizer) as monitor:
        for step, (inputs, labels) in enumerate(digits(900)):
            if step in (300, 500, 700):
                for layer in (model[1], model[3]):
                    prune.ln_structured(layer, "weight", 0.2, n=2, dim=0)  # type: ignore[no-untyped-call]
            descend(model, optimizer, inputs, labels)
    assert accuracy(model) > 0.95
    assert warnings_of(monitor) == []


def resize(layer: nn.Linear, outputs: Tensor, inputs: Tensor, share: Tensor | float = 1.0) -> None:
    """Give a layer these of its rows and columns, some perhaps several times; columns are multiplied by `share`."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    layer.weight = nn.Parameter((weight * share)[outputs][:, inputs])
    layer.bias = nn.Parameter(bias[outputs])


@pytest.mark.parametrize("width", [64, 128, 320])
def test_layers_that_change_their_width(width: int) -> None:
    """Units are pruned for good, or split in two as by Net2Wider: the layers keep their names, but not their shapes."""
    model = nn.Sequential(*mlp(64, 256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    first, second, last = (layer for layer in model if isinstance(layer, nn.Linear))
    with watched(model, optimizer, every=10) as monitor:
        for step, (inputs, labels) in enumerate(digits(500)):
            if step == 300:
                kept = torch.arange(width) % 256
                share = 1 / kept.bincount(minlength=256).clamp(min=1)
                resize(first, kept, torch.arange(64))
                resize(second, kept, kept, share)
                resize(last, torch.arange(10), kept, share)
                optimizer.state.clear()
                optimizer.param_groups[0]["params"] = list(model.parameters())
            descend(model, optimizer, inputs, labels)
    assert accuracy(model) > 0.9
    assert warnings_of(monitor) == []


def test_one_cycle() -> None:
    """Up to ten times the usual learning rate."""
    model = mlp(64, 256, 128, 10)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, 1e-2, total_steps=1500)
    with watched(model, optimizer) as monitor:
        for inputs, labels in digits(1500):
            descend(model, optimizer, inputs, labels)
            schedule.step()
    assert accuracy(model) > 0.95
    assert warnings_of(monitor) == []
