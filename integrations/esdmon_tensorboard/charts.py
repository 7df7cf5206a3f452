"""Read a run without tensors of ours from its charts: runs of older versions, and of writers without tensors.

Phases and measures are those of the scalars `esdmon_<measure>/<layer>`, spectra the histograms `esdmon_esd/<layer>`,
alerts the texts `esdmon_alert/<rule>/<layer>`. If charts were limited (`max_tags=`), the page shows only these, and
TensorBoard keeps a random sample of each. Histograms do not contain the shape of the matrix, so no curve of noise is
drawn.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, final

import numpy as np

from esdmon.records import SCHEMA, Record
from esdmon.spectrum import Phase
from esdmon.webpage import contract
from esdmon.webpage.codes import CHARACTERS, NOT_READ, rows_of
from esdmon.webpage.run_data import MAX_COLUMNS
from esdmon_tensorboard.stored import MAX_FRAMES, MAX_POINTS, Datum, Provider

PREFIX: Final = "esdmon_phase/"
_ALERT: Final = re.compile(r"esdmon_alert/(?P<rule>[^/]+)/(?P<layer>.*)/text_summary", re.DOTALL)
_TEXT: Final = re.compile(r"\*\*(?P<severity>\w+), (?P<state>\w+)\*\* (?P<message>.*)", re.DOTALL)


@final
class ChartedRun:
    """One run with charts only. Layers have the names of their tags."""

    def __init__(self, provider: Provider, run: str) -> None:
        self._provider = provider
        self._run = run

    def overview(self, after: str = "") -> Record:
        """Return the data of the first screen; see `StoredRun.overview`. New columns are sent with all others."""
        series = self._scalars("phase")
        names = list(series)
        steps = sorted({step for points in series.values() for step in points})
        alerts = self._alerts()
        cursor = f"{steps[-1] if steps else '-'}:{len(steps)}:{len(alerts)}:{len(names)}"
        if after == cursor:
            return {"schema": SCHEMA, "cursor": cursor, "unchanged": True}
        place = {step: column for column, step in enumerate(steps)}
        codes = np.full((len(steps), len(names)), NOT_READ, dtype=np.int8)
        for row, points in enumerate(series.values()):
            for step, value in points.items():
                codes[place[step] :, row] = _code(value)
        chosen = contract.choose_columns(steps, codes, MAX_COLUMNS)
        view = contract.overview(
            [contract.Layer.unread(name) for name in names],
            [steps[k] for k in chosen],
            rows_of(codes[chosen]),
            alerts,
            self._last(names),
        )
        return view | {"cursor": cursor, "append": False, "charts_only": True}

    def lines(self, name: str) -> Record:
        """Return the measures of a layer at its readings."""
        values = {measure: self._of_layer(measure, name) for measure in contract.MEASURES}
        noise = self._of_layer("alpha_noise", name)  # an alpha that is not meaningful has its own chart
        values["alpha_is_meaningful"] = dict.fromkeys(values["alpha"], 1.0) | dict.fromkeys(noise, 0.0) if noise else {}
        values["alpha"] = values["alpha"] | noise
        steps = sorted({step for points in values.values() for step in points})
        chosen = [steps[k] for k in contract.spread(steps, MAX_POINTS)]
        return contract.lines(chosen, [[points.get(step, math.nan) for step in chosen] for points in values.values()])

    def frames(self, name: str) -> Record:
        """Return the spectra of a layer."""
        points = self._provider.points(self._run, f"esdmon_esd/{name}", "histograms")
        chosen = [points[k] for k in contract.spread([point.step for point in points], MAX_FRAMES)]
        fits = {measure: self._of_layer(measure, name) for measure in (*contract.FIT, "phase")}
        return contract.frames([point.step for point in chosen], [_frame(point, fits) for point in chosen])

    def _scalars(self, measure: str, name: str | None = None) -> dict[str, dict[int, float]]:
        """Return the values of a measure by layer and step, of one layer or of all."""
        prefix = f"esdmon_{measure}/"
        found = self._provider.scalars(self._run, prefix, None if name is None else prefix + name)
        return {
            tag.removeprefix(prefix): {point.step: point.value for point in points} for tag, points in found.items()
        }

    def _of_layer(self, measure: str, name: str) -> dict[int, float]:
        """Return the values of a measure of one layer by step."""
        return self._scalars(measure, name).get(name, {})

    def _last(self, names: list[str]) -> dict[str, Record]:
        by_measure = [self._scalars(measure) for measure in contract.MEASURES]
        found = {}
        for name in names:
            series = [values.get(name, {}) for values in by_measure]
            step = max((max(points) for points in series if points), default=0)
            found[name] = contract.last_reading(step, [points.get(step, math.nan) for points in series])
        return found

    def _alerts(self) -> list[Record]:
        found = []
        for tag in self._provider.tags("text", [self._run]).get(self._run, []):
            match = _ALERT.fullmatch(tag)
            for point in self._provider.events(self._run, tag, "text") if match else ():
                text = _TEXT.fullmatch(_text(point))
                if match and text:
                    layer = "" if match["layer"] == "model" else match["layer"]
                    own = {"id": tag, "rule": match["rule"], "layer": layer, "layers": [layer] if layer else []}
                    severity = {"severity": "info"} if text["severity"] == "notice" else {}
                    found.append(own | text.groupdict() | severity | {"step": point.step, "since": point.step})
        return sorted(found, key=lambda alert: alert["step"])


def _frame(point: Datum, fits: dict[str, dict[int, float]]) -> Record:
    """Return the frame of a histogram, whose value is an array of rows (left border, right border, count)."""
    bins = np.asarray(point.numpy, dtype=float)
    at_step = {name: values.get(point.step) for name, values in fits.items()}
    phase = at_step.pop("phase")
    code = NOT_READ if phase is None else _code(phase)
    fit: dict[str, Any] = {name: contract.short(value) for name, value in at_step.items()}
    counts = [round(count) for count in bins[:, 2]]
    edges = {"low": contract.short(bins[0, 0]), "high": contract.short(bins[-1, 1])}
    return edges | {"counts": counts, "top": [], "phase": CHARACTERS[code]} | fit


def _code(phase: float) -> int:
    """Return the code of a phase that was drawn."""
    return min(max(round(phase), Phase.UNCLASSIFIED.code), Phase.RANK_COLLAPSE.code)


def _text(point: Datum) -> str:
    return bytes(np.ravel(point.numpy)[0]).decode(errors="replace")
