"""Readings that need no model to train, and a sink that fails: for tests of the monitor."""

from collections.abc import Callable, Collection, Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from esdmon.analysis import analyze
from esdmon.records import Alert, LayerReport, Report
from esdmon.records.serialization import Plain
from esdmon.records.timeline import Timeline

_DIFFERENT = 8  # reports, so that a hundred due steps take no time


@cache
def _report_of(seed: int) -> Report:
    torch.manual_seed(seed)
    return analyze(nn.Linear(30, 20))


def timeline_of(*events: Report | Alert) -> Timeline:
    """Return the course of a run in which these happened, in order."""
    timeline = Timeline()
    for event in events:
        if isinstance(event, Report):
            timeline.take(event)
        else:
            timeline.alert(event)
    return timeline


class Reads:
    """Readings that are complete at once: of a new layer at each step."""

    reports = True
    under_way_here = False
    is_ready = True
    dropped = 0

    def __init__(self) -> None:
        self.latest: dict[str, LayerReport] = {}
        self._complete: list[Report] = []

    @property
    def under_way(self) -> bool:
        return bool(self._complete)

    @property
    def is_idle(self) -> bool:
        return not self.under_way

    def settle(self) -> None:
        pass

    def advance(self, *, waiting: bool = False) -> None:
        pass

    def leftover(self) -> tuple[str, ...]:
        return ()

    def get_ready(self, step: int) -> None:
        pass

    def is_poll(self, step: int) -> bool:
        return False

    def begin(
        self, step: int, host_step: int | None = None, names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        report = _report_of(step % _DIFFERENT)
        layers = tuple(replace(layer, step=step) for layer in report)
        self._complete.append(Report(step, layers, report.coverage, 0.0))

    def finished(self) -> Iterator[Report]:
        while self._complete:
            report = self._complete.pop(0)
            self.latest |= {layer.name: layer for layer in report}
            yield report

    def give_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def state_dict(self) -> Plain:
        return {}

    def prepare(self, state: Plain) -> Callable[[], None]:
        return lambda: None


@dataclass
class RaisingSink:
    """A sink whose methods raise an exception: by default that of a full disk."""

    error: Exception = field(default_factory=lambda: OSError(28, "No space left on device"))

    def _fail(self) -> None:
        raise copy(self.error)  # the traceback of one that is kept would keep the monitor alive

    def write(self, report: Report) -> None:
        self._fail()

    def alert(self, alert: Alert) -> None:
        self._fail()

    def flush(self) -> None:
        self._fail()

    def close(self) -> None:
        self._fail()
