"""A short watched training, and what the tests in this folder disturb it with."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import esdmon
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum

STEPS = 24


class Noise(Dataset[torch.Tensor]):
    """The same numbers in each process."""

    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.randn(64, generator=torch.Generator().manual_seed(k))


class Run:
    """A training of a few steps that is watched, and its log."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sink = MemorySink()
        self.losses: list[float] = []
        if options:
            sinks = [self.sink, *options.pop("sinks", ())]
            given: dict[str, Any] = {"every": 2, "budget": None, "sinks": sinks} | options
            self.monitor = esdmon.watch(self.model, self.optimizer, **given)

    def train(self, *, workers: int = 0, before: Callable[[int], None] = lambda _step: None) -> None:
        loader = DataLoader(Noise(), batch_size=8, num_workers=workers)
        for step, batch in enumerate(loader, start=1):
            before(step)
            loss = (self.model(batch) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    @property
    def steps_read(self) -> list[int]:
        return [report.step for report in self.sink.reports]

    @property
    def who_failed(self) -> list[str]:
        return [fault.who for fault in self.monitor.errors]


both_modes = pytest.mark.parametrize("mode", ["sync", "thread"])


class Plugin:
    """One measure."""

    def __init__(self, compute: Callable[[Spectrum], float]) -> None:
        self._compute = compute

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> Iterable[Measure]:
        return [Measure("of_the_plugin", self._compute)]


def slowly(_spectrum: Spectrum) -> float:
    time.sleep(0.05)
    return 1.0


def n_logged(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How many warnings contain these words."""
    return sum(words in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
