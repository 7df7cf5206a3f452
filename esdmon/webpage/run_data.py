"""Collect the data of the views of one run from reports and alerts, in bounded memory."""

import json
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from esdmon.records import Alert, LayerReport, Record, Report
from esdmon.webpage import contract
from esdmon.webpage.codes import NOT_READ, column_of, rows_of

MAX_COLUMNS: Final = 2000
"""Number of steps of the phase map that are kept; screens do not have more pixels."""
MAX_POINTS: Final = 600
"""Number of points of a layer's lines that are kept. Our choice."""
MAX_FRAMES: Final = 48
"""Number of spectra of a layer that are kept, about 700 bytes each. Our choice."""

T = TypeVar("T")


@final
class Series(Generic[T]):
    """Values by step in bounded memory: all up to twice `limit`, then every second, every fourth …, always the last.

    Args:
        limit: if there are more than twice as many values, half of them are dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._every = 1
        self._number = -1  # index of the last value that was added
        self.steps: list[int] = []
        self.values: list[T] = []

    def add(self, step: int, value: T) -> None:
        """Append a value."""
        if self.steps and self._number % self._every:  # the value before was kept only because it was the last
            del self.steps[-1], self.values[-1]
        self._number += 1
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > 2 * self._limit:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self._every *= 2

    def rewind(self, step: int) -> None:
        """Drop all values after a step."""
        count = bisect_right(self.steps, step)
        if count < len(self.steps):
            del self.steps[count:], self.values[count:]
            self._number = 0


@final
class RunData:
    """The data that the views show for one run.

    Args:
        name: displayed name of the run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.readings = 0
        """Number of reports."""
        self.alerts: list[Record] = []
        self._layers: dict[str, contract.Layer] = {}
        self._columns: Series[NDArray[np.int8]] = Series(2 * MAX_COLUMNS)
        self._lines: dict[str, Series[list[float]]] = {}
        self._frames: dict[str, Series[str]] = {}
        self.last_step = 0
        """Step of the last report, in optimizer steps; 0 before the first."""
        self._x = 0

    @property
    def layers(self) -> list[contract.Layer]:
        """Return the layers in the order of their first readings."""
        return list(self._layers.values())

    def add(self, report: Report, due: Iterable[LayerReport] | None = None) -> None:
        """Add a report.

        Args:
            report: the report.
            due: layers whose spectra are kept; None for all layers that were read at this step and have a spectrum.
        """
        self.readings += 1
        self.last_step, self._x = report.step, report.x
        self._layers = contract.with_layers_of(report, self._layers)
        for layer in report.new:
            self._lines.setdefault(layer.name, Series(MAX_POINTS)).add(report.x, contract.measures_of(layer))
        for layer in report.new if due is None else due:
            if layer.esd is not None:
                text = json.dumps(contract.frame_of(layer), separators=(",", ":"), ensure_ascii=False)
                self._frames.setdefault(layer.name, Series(MAX_FRAMES)).add(report.x, text)
        self._columns.add(report.x, column_of(self._layers, report))

    def add_alert(self, alert: Alert) -> None:
        """Add an alert, at the x-coordinate of the last report if both have the same step, else at its own step."""
        x = self._x if alert.step == self.last_step else alert.step
        self.alerts.append(contract.alert_of(alert, x))

    def rewind(self, step: int) -> None:
        """Drop all data after a step, in optimizer steps."""
        x = step * self._x // max(self.last_step, 1)
        self._columns.rewind(x)
        self.alerts = [alert for alert in self.alerts if alert["step"] <= x]
        for line in self._lines.values():
            line.rewind(x)
        for frame in self._frames.values():
            frame.rewind(x)

    def overview(self, columns: int = MAX_COLUMNS) -> Record:
        """Return the data of the first screen, with at most this many columns."""
        matrix, steps = self._matrix(), self._columns.steps
        chosen = contract.choose_columns(steps, matrix, columns)
        last = {
            name: contract.last_reading(series.steps[-1], series.values[-1])
            for name, series in self._lines.items()
            if series.steps
        }
        rows = rows_of(matrix[chosen])
        return contract.overview(self.layers, [steps[k] for k in chosen], rows, self.alerts, last)

    def lines(self, name: str, points: int = MAX_POINTS) -> Record:
        """Return the measures of a layer, with at most this many points."""
        series = self._lines.get(name) or Series[list[float]](points)
        chosen = contract.spread(series.steps, points)
        rows = [series.values[k] for k in chosen]
        columns = [[row[k] for row in rows] for k in range(len(contract.MEASURES))]
        return contract.lines([series.steps[k] for k in chosen], columns)

    def frames(self, name: str, count: int = MAX_FRAMES) -> Record:
        """Return at most `count` spectra of a layer."""
        series = self._frames.get(name) or Series[str](count)
        chosen = contract.spread(series.steps, count)
        return contract.frames([series.steps[k] for k in chosen], [json.loads(series.values[k]) for k in chosen])

    def by_interest(self) -> list[str]:
        """Return the names of the layers: those with an alert, those with a change of phase, then the others."""
        alerted = {name for alert in self.alerts for name in alert["layers"]}
        matrix = self._matrix()
        read = matrix != NOT_READ
        changed = {name for k, name in enumerate(self._layers) if np.unique(matrix[read[:, k], k]).size > 1}
        return sorted(self._layers, key=lambda name: (name not in alerted, name not in changed))

    def _matrix(self) -> NDArray[np.int8]:
        """Return the codes, of shape (columns, layers); a layer counts as unread before its first reading."""
        columns = self._columns.values
        matrix = np.full((len(columns), len(self._layers)), NOT_READ, dtype=np.int8)
        for column, codes in zip(matrix, columns, strict=True):
            column[: len(codes)] = codes
        return matrix
