"""A small training that is watched, and measures that take time or wait, for tests of how readings run beside it."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

import esdmon
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.clocks import FakeClock

MODES = ["sync", "thread"]


class Training:
    """A small network on noise, watched or not."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.sink = MemorySink()
        self.monitor: esdmon.Monitor | None = None
        if options:
            self.monitor = esdmon.watch(self.model, self.optimizer, sinks=[self.sink], **options)
        self.losses: list[float] = []

    def train(self, steps: int) -> "Training":
        for _ in range(steps):
            loss = (self.model(torch.randn(8, 64)) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return self

    @property
    def watched(self) -> esdmon.Monitor:
        assert self.monitor is not None
        return self.monitor

    def state(self) -> list[Tensor]:
        state = [x for entry in self.optimizer.state.values() for x in entry.values()]
        return [*self.model.parameters(), *state, torch.get_rng_state()]


def slow_measure(clock: FakeClock) -> type:
    """A plugin whose measure takes 20 ms, by a clock that nothing else moves."""

    def wait(_spectrum: Spectrum) -> float:
        clock.passes(0.02)
        return 1.0

    class Slow:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("slow", wait)]

    return Slow


def waiting_measure(gate: threading.Event) -> type:
    """A plugin whose measure waits for a gate to open."""

    class Waiting:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("waiting", lambda _spectrum: float(gate.wait(60)))]

    return Waiting
