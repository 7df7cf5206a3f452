"""Read the tensors of `tensors.py` through TensorBoard's data provider, and convert them to the page's JSON."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray
from tensorboard.data.provider import RunTagFilter

from esdmon.records import SCHEMA, Record
from esdmon.webpage import contract
from esdmon.webpage.codes import NOT_READ, rows_of
from esdmon.webpage.run_data import MAX_COLUMNS
from esdmon_tensorboard import tensors

MAX_POINTS: Final = 1000
"""Largest number of points of a line, twice its width in pixels."""
MAX_FRAMES: Final = 240
"""Largest number of spectra of a layer in one answer, about 900 bytes each. Our choice."""
_ALL: Final = 100_000
"""Number of points to request: more than TensorBoard keeps of a tag, unless `--samples_per_plugin` is set higher."""


class Datum(Protocol):
    """A point of the data provider."""

    step: int
    wall_time: float
    numpy: NDArray[Any]


@final
@dataclass(frozen=True, slots=True)
class Provider:
    """TensorBoard's data provider, for one request."""

    provider: Any
    context: Any
    experiment: str

    def stored_runs(self, run: str | None = None) -> list[str]:
        """Return the runs with tensors of ours, or the given one if it has any."""
        return list(self.tags(tensors.PLUGIN, [run] if run is not None else None, [tensors.LAYERS]))

    def tags(
        self, plugin: str, runs: Sequence[str] | None = None, tags: Sequence[str] | None = None
    ) -> dict[str, list[str]]:
        """Return the tags of tensors by run, of the given ones if there are any."""
        found = self.provider.list_tensors(
            self.context,
            experiment_id=self.experiment,
            plugin_name=plugin,
            run_tag_filter=RunTagFilter(runs=runs, tags=tags),
        )
        return {run: sorted(of_run) for run, of_run in found.items()}

    def by_start(self, runs: Iterable[str]) -> list[str]:
        """Return runs, sorted by the time at which they began."""
        listed = self.provider.list_runs(self.context, experiment_id=self.experiment)
        began = {run.run_name: run.start_time for run in listed}
        return sorted(runs, key=lambda run: (began.get(run) or 0.0, run))

    def runs_with_scalars(self, prefix: str, run: str | None = None) -> list[str]:
        """Return the runs that have a scalar whose tag begins with a prefix, or the given one if it has."""
        found = self.provider.list_scalars(
            self.context,
            experiment_id=self.experiment,
            plugin_name="scalars",
            run_tag_filter=RunTagFilter(runs=None if run is None else [run]),
        )
        return [run for run, tags in found.items() if any(tag.startswith(prefix) for tag in tags)]

    def scalars(self, run: str, prefix: str, only: str | None = None) -> dict[str, list[Any]]:
        """Return the points of the scalars of a run whose tags begin with a prefix, or of one of them."""
        where: dict[str, Any] = {"experiment_id": self.experiment, "plugin_name": "scalars"}
        listed = self.provider.list_scalars(self.context, **where, run_tag_filter=RunTagFilter(runs=[run]))
        tags = [tag for tag in listed.get(run, {}) if tag.startswith(prefix) and only in (None, tag)]
        if not tags:
            return {}
        chosen = RunTagFilter(runs=[run], tags=tags)
        found = self.provider.read_scalars(self.context, **where, downsample=_ALL, run_tag_filter=chosen)
        return {tag: found[run][tag] for tag in tags if tag in found.get(run, {})}

    def points(self, run: str, tag: str, plugin: str = tensors.PLUGIN, *, most: int = _ALL) -> list[Datum]:
        """Return the points of a tag by step: a random choice of `most`, and the last; none for unknown names."""
        by_step = {point.step: point for point in self.events(run, tag, plugin, most=most)}  # the last of each step
        return [by_step[step] for step in sorted(by_step)]

    def events(self, run: str, tag: str, plugin: str = tensors.PLUGIN, *, most: int = _ALL) -> list[Datum]:
        """Return the points of a tag in the order of time."""
        found = self.provider.read_tensors(
            self.context,
            experiment_id=self.experiment,
            plugin_name=plugin,
            downsample=most,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
        )
        return sorted(found.get(run, {}).get(tag, []), key=lambda point: (point.wall_time, point.step))


@final
class StoredRun:
    """One run with tensors of our own."""

    def __init__(self, provider: Provider, run: str) -> None:
        self._provider = provider
        self._run = run
        versions = self._points(tensors.LAYERS)
        self._version_steps = [point.step for point in versions]
        self._versions = [[contract.Layer(*fields) for fields in _json(point)] for point in versions]

    @property
    def layers(self) -> list[contract.Layer]:
        """Return the layers, in the order of the last written list."""
        found: dict[str, contract.Layer] = {}
        for version in reversed(self._versions):
            for layer in version:
                found.setdefault(layer.name, layer)
        return list(found.values())

    def overview(self, after: str = "") -> Record:
        """Return the data of the first screen.

        Args:
            after: the `cursor` of an earlier answer. The result then has only later columns, with `"append": true`;
                `"unchanged": true` if there is nothing new; or all columns if the run was rewound since.
        """
        points = self._points(tensors.PHASE)
        alerts = [alert for point in self._points(tensors.ALERTS) for alert in _json(point)]
        layers = self.layers
        cursor = _Cursor(points[-1] if points else None, len(alerts), len(layers))
        if after and after == str(cursor):
            return {"schema": SCHEMA, "cursor": after, "unchanged": True}
        known = cursor.columns_known(after, points)
        new = points[known:]
        codes = self._codes(new, layers)
        chosen = contract.choose_columns([point.step for point in new], codes, MAX_COLUMNS)
        view = contract.overview(
            layers,
            [new[k].step for k in chosen],
            rows_of(codes[chosen]),
            alerts,
            self._last(layers),
            final=None if not points else (points[-1].step, rows_of(self._codes(points[-1:], layers))),
        )
        return view | {"cursor": str(cursor), "append": known > 0}

    def lines(self, name: str) -> Record:
        """Return the measures of a layer at its readings."""
        steps, rows = [], []
        for point in self._points(tensors.MEASURES, most=MAX_POINTS):
            version = self._version_at(point.step)
            index = next((k for k, layer in enumerate(version) if layer.name == name), None)
            row = None if index is None else _row_of(point.numpy, index)
            if row is not None:
                steps.append(point.step)
                rows.append(row)
        columns = np.array(rows).T.tolist() if rows else [[] for _ in contract.MEASURES]
        return contract.lines(steps, columns)

    def frames(self, name: str) -> Record:
        """Return the spectra of a layer."""
        points = self._points(tensors.esd_tag(name))
        chosen = [points[k] for k in contract.spread([point.step for point in points], MAX_FRAMES)]
        return contract.frames([point.step for point in chosen], [_json(point) for point in chosen])

    def _points(self, tag: str, *, most: int = _ALL) -> list[Datum]:
        return self._provider.points(self._run, tag, most=most)

    def _version_at(self, step: int) -> list[contract.Layer]:
        """Return the list of layers that was valid at a step."""
        return self._versions[max(bisect_right(self._version_steps, step) - 1, 0)] if self._versions else []

    def _codes(self, points: Sequence[Datum], layers: Sequence[contract.Layer]) -> NDArray[np.int8]:
        """Return the codes of the layers, of shape (points, layers)."""
        codes = np.full((len(points), len(layers)), NOT_READ, dtype=np.int8)
        index = {layer.name: k for k, layer in enumerate(layers)}
        places = {id(version): np.array([index[layer.name] for layer in version], int) for version in self._versions}
        for column, point in enumerate(points):
            version = self._version_at(point.step)
            if version:
                count = min(len(version), len(point.numpy))
                codes[column, places[id(version)][:count]] = point.numpy[:count]
        return codes

    def _last(self, layers: Sequence[contract.Layer]) -> dict[str, Record]:
        """Return the last reading of each layer; earlier values are read only if the last one lacks layers."""
        found = self._last_in(self._points(tensors.MEASURES, most=1), layers)
        return found if len(found) == len(layers) else self._last_in(self._points(tensors.MEASURES), layers)

    def _last_in(self, points: Sequence[Datum], layers: Sequence[contract.Layer]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for point in reversed(points):
            version = self._version_at(point.step)
            for row in point.numpy:
                index = int(row[0])
                if index < len(version) and version[index].name not in found:
                    found[version[index].name] = contract.last_reading(point.step, row[1:].tolist())
            if len(found) == len(layers):
                break
        return found


@final
@dataclass(frozen=True, slots=True)
class _Cursor:
    """The position up to which the page has the data of a run, in the form `step:time:alerts:layers`."""

    last: Datum | None
    alerts: int
    layers: int

    def __str__(self) -> str:
        where = "-:-" if self.last is None else f"{self.last.step}:{self.last.wall_time:.6f}"
        return f"{where}:{self.alerts}:{self.layers}"

    def columns_known(self, after: str, points: Sequence[Datum]) -> int:
        """Return how many points the page has; 0 if it needs all of them again.

        A point that was written again after a rewind has another time. New layers need rows from the start.
        """
        step, _, rest = after.partition(":")
        time, _, counts = rest.partition(":")
        if counts.partition(":")[2] != str(self.layers):
            return 0
        known = [k for k, point in enumerate(points) if (str(point.step), f"{point.wall_time:.6f}") == (step, time)]
        return known[-1] + 1 if known else 0


def _row_of(rows: NDArray[np.float32], index: int) -> list[float] | None:
    """Return the measures in the row of a layer; None if it has no row."""
    found = np.flatnonzero(rows[:, 0] == index)
    return rows[found[0], 1:].tolist() if found.size else None


def _json(point: Datum) -> Any:
    return json.loads(bytes(point.numpy.item()))
