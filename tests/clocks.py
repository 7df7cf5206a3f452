"""Time that passes only where a test lets it."""

from typing import Any

import pytest

from esdmon import watching
from esdmon.schedule.budget import Budget


class FakeClock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        """Return the time, a microsecond later at each call: nothing takes no time at all."""
        self.now += 1e-6
        return self.now


def set_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Have every `watch()` of a test measure what readings cost by a clock that the test moves."""
    clock = FakeClock()

    def budget(*arguments: Any, **options: Any) -> Budget:
        return Budget(*arguments, **options | {"clock": clock.perf_counter, "cpu_clock": clock.perf_counter})

    monkeypatch.setattr(watching, "Budget", budget)
    monkeypatch.setattr("esdmon.runtime.workers.executor.time", clock)
    return clock
