"""Optimizers inside others: which of them counts the steps, and what has no hooks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from tests.loops import backward, network, warnings


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Opacus warns of its own random numbers, and of hooks
def test_private_training_counts_the_steps_that_are_taken() -> None:
    """Only the last part of a batch is a step of the optimizer; layers have the names of the model in its wrapper."""
    opacus = pytest.importorskip("opacus")
    memory = pytest.importorskip("opacus.utils.batch_memory_manager")
    data = torch.utils.data.TensorDataset(torch.randn(64, 40))
    model, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=(plain := network()),
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=32),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    with pytest.raises(InputError, match=r"give watch\(\) the optimizer inside it, \.original_optimizer"):
        esdmon.watch(model, optimizer, sinks=[])
    monitor = esdmon.watch(model, optimizer.original_optimizer, every=2, budget=None, sinks=[])
    parts = 0
    with (
        monitor,
        memory.BatchMemoryManager(data_loader=loader, max_physical_batch_size=8, optimizer=optimizer) as small,
    ):
        for (inputs,) in small:
            optimizer.zero_grad()
            model(inputs).pow(2).mean().backward()
            optimizer.step()
            parts += 1
    assert (parts, monitor.steps) == (8, 2)
    assert monitor.report is not None
    assert [layer.name for layer in monitor.report] == [layer.name for layer in esdmon.analyze(plain)]
    assert [layer.name for layer in esdmon.analyze(model.state_dict())] == [layer.name for layer in monitor.report]


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
            r"optimizer is of type NoHooks.*Leave it out, or give watch\(\) the optimizer inside it, \.base, with hook",
        ),
        (
            NoHooks,
            r"call monitor\.step\(\).*If nothing writes weights after the step of \.base, give watch\(\) \.base alone",
        ),
        (
            Several,
            r"optimizer is of type Several.*Give watch\(\) a list of the optimizers inside it, \.optimizers, or leave",
        ),
        (Named, r"optimizer is of type Named.*Give watch\(\) a list of the optimizers inside it, \.by_name, or leave"),
        (
            lambda inner: {"a": inner},
            r"optimizer is of type dict.*Give watch\(\) a list of the optimizers in it, or leave",
        ),
        (
            lambda inner: [[inner]],
            r"optimizer is of type list.*Give watch\(\) a list of the optimizers in it, or leave",
        ),
        (lambda _: Several(), r"optimizer is of type Several.*Leave it out and call monitor\.step\(\)"),
        (lambda _: network(), r"optimizer is of type Sequential.*Are model and optimizer swapped\?"),
        (lambda _: 5, "optimizer is of type int"),
    ],
)
def test_what_has_no_hooks_is_refused_before_training(wrap: Callable[[Any], Any], message: str) -> None:
    """With the way out."""
    model = network()
    with pytest.raises(InputError, match=message):
        esdmon.watch(model, wrap(torch.optim.SGD(model.parameters(), lr=0.1)), sinks=[])


class Invented:
    """Like a mock, or a `dask.delayed`: it has every attribute, and each is a new object."""

    made = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        Invented.made += 1
        if Invented.made > 1000:
            pytest.fail("the search has no end")
        return Invented()


@pytest.mark.parametrize("given", [Invented(), [Invented()]])
def test_an_object_that_makes_up_its_attributes_has_no_optimizer(given: Any) -> None:
    with pytest.raises(InputError, match="optimizer is of type Invented, not a torch"):
        esdmon.watch(network(), given, sinks=[])
