"""What it costs to find the devices to wait for before readings, in a model of many parameters."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import esdmon
from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from tests.clocks import FakeClock, set_clock

MANY = 5.0


class Large(nn.Sequential):
    """A model whose parameters take long to look at."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(nn.Linear(24, 16))
        self.clock = clock
        self.n_looks = 0

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: FBT001, FBT002 -- torch's own
        """Take some seconds of the clock."""
        self.n_looks += 1
        self.clock.passes(MANY)
        return super().parameters(recurse)


def test_without_an_accelerator_no_parameter_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 5000 parameters that took some 20 ms, at each due step."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model = Large(FakeClock())
    reader = Reader(model, Plugins(()), ReadingOptions(()))
    before = model.n_looks
    reader.synchronizer()()
    assert model.n_looks == before


def test_looking_for_accelerators_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for their kernels is not: the training would have to wait for them as well."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    model = Large(set_clock(monkeypatch))
    optimizer = torch.optim.SGD(nn.Sequential.parameters(model), lr=0.1)
    n_looks = 0
    with esdmon.watch(model, optimizer, every=1, budget=None, mode="sync", sinks=None) as monitor:
        for _ in range(3):
            model(torch.ones(1, 24)).sum().backward()
            before = model.n_looks
            optimizer.step()
            n_looks += model.n_looks - before
            model.clock.passes(100.0)
        assert n_looks == 3
        assert monitor.overhead == pytest.approx(3 * MANY / (3 * MANY + 300.0), rel=0.01)
