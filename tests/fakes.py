"""Readings that need no model to train, and a sink that fails: for tests of the monitor."""

from collections.abc import Collection, Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from esdmon.analysis import analyze
from esdmon.records import Alert, LayerReport, Report
from esdmon.records.timeline import Timeline
from esdmon.runtime.readings import Readings

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


class Reads(Readings):
    """Readings that are complete at once: of a new layer at each step."""

    reports = True

    def __init__(self) -> None:
        self._latest: dict[str, LayerReport] = {}
        self._complete: list[Report] = []

    @property
    def latest(self) -> dict[str, LayerReport]:
        return self._latest

    @property
    def under_way(self) -> bool:
        return bool(self._complete)

    @property
    def is_idle(self) -> bool:
        return not self.under_way

    def begin(
        self, step: int, host_step: int | None = None, names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        report = _report_of(step % _DIFFERENT)
        layers = tuple(replace(layer, step=step) for layer in report)
        self._complete.append(Report(step, layers, report.coverage, 0.0))

    def finished(self) -> Iterator[Report]:
        while self._complete:
            report = self._complete.pop(0)
            self._latest |= {layer.name: layer for layer in report}
            yield report


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
