"""Build the JSON that the page reads, from records or from numbers by layer.

The page requests three objects for a run, each with `"schema": 1`; it ignores unknown keys:

- `overview`: names of layers, steps, a row of phases for each layer with one character per step, alerts, the table of
last readings, and a text on the current problems;
- `lines` of a layer: the measures of `MEASURES` at each of its readings;
- `frames` of a layer: its spectra, each with all data that is needed to draw it.

Steps are positions on the horizontal axis: the Trainer's steps if there is a Trainer, else optimizer steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from esdmon.present.scalars import kind_of
from esdmon.records import SCHEMA, Alert, LayerReport, Record, Report
from esdmon.records.serialization import esd_to_record
from esdmon.records.table import natural_key
from esdmon.webpage.codes import CHARACTERS, code_of
from esdmon.webpage.problems import firing, now

MEASURES: Final = (
    "alpha",
    "alpha_stderr",
    "alpha_low",
    "alpha_high",
    "alpha_null",
    "alpha_is_meaningful",
    "mp_soft_rank",
    "n_spikes",
    "stable_rank",
    "stable_rank_null",
    "update_ratio",
    "frobenius_norm",
)
"""The numbers that are drawn as lines, in the order of the tensor `esdmon/measures`; append new ones at the end."""
FIT: Final = ("alpha", "alpha_stderr", "xmin", "n_tail", "bulk_sigma", "bulk_edge", "n_spikes", "mp_soft_rank")
"""Measures that are drawn in the picture of a spectrum, or written beside it."""
MAX_ALERTS: Final = 400
"""Largest number of alerts in one overview: firing ones first, then the latest others. Our choice."""
MIN_GROUP: Final = 3
"""Smallest number of layers of one kind that form a group. Our choice."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The properties of a layer that are the same at each reading."""

    name: str
    kind: str
    """The name without the layer's place in a stack of similar ones, such as `h.*.mlp`."""
    M: int = 0
    """Shorter side of the matrix; 0 if it was not read yet."""
    N: int = 0
    slices: int = 1

    @classmethod
    def of(cls, layer: LayerReport) -> "Layer":
        """Return the layer of a reading."""
        return cls(layer.name, kind_of(layer.name), layer.M, layer.N, layer.slices)

    @classmethod
    def unread(cls, name: str) -> "Layer":
        """Return a layer with a known name and no reading."""
        return cls(name, kind_of(name))


def with_layers_of(report: Report, known: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return the known layers by name, and those of a report, also the ones that are not read yet."""
    layers = {**known, **{layer.name: Layer.of(layer) for layer in report}}
    return layers | {name: Layer.unread(name) for name in report.waiting if name not in layers}


def measures_of(layer: LayerReport) -> list[float]:
    """Return the values of `MEASURES`, NaN for those that are undefined."""
    own = {
        "alpha_is_meaningful": float(layer.alpha_is_meaningful),
        "update_ratio": layer.update_ratio,
        **{f"{name}_null": value for name, value in layer.nulls.items()},
    }
    return [own.get(name, layer.measures.get(name, math.nan)) for name in MEASURES]


def frame_of(layer: LayerReport) -> Record:
    """Return the spectrum of a reading: `esd` as in the JSONL, the shape, and the measures of its picture.

    Raises:
        ValueError: for a layer without a histogram.
    """
    if layer.esd is None:
        raise ValueError(f"{layer.name} has no histogram")
    fit = {name: short(layer.measures.get(name, math.nan)) for name in FIT}
    return {
        **esd_to_record(layer.esd),
        **fit,
        "M": layer.M,
        "N": layer.N,
        "slices": layer.slices,
        "meaningful": layer.alpha_is_meaningful,
        "phase": CHARACTERS[code_of(layer)],
        "explanation": layer.explanation,
    }


def alert_of(alert: Alert, x: int) -> Record:
    """Return the record of an alert drawn at `x`; its `since` is converted to the unit of `x`."""
    since = alert.since * x // alert.step if alert.step > 0 else x
    keys = ("id", "rule", "severity", "state", "layer", "layers", "message")
    record = alert.to_record()
    lines = {"lines": alert.layer_lines} if alert.layer_lines else {}
    return {key: record[key] for key in keys} | {"step": x, "since": since} | lines


def overview(
    layers: Sequence[Layer],
    steps: Sequence[int],
    rows: Sequence[str],
    alerts: Sequence[Record],
    last: Mapping[str, Record],
    *,
    final: tuple[int, Sequence[str]] | None = None,
) -> Record:
    """Return the data of the first screen.

    Args:
        layers: the layers of the run.
        steps: steps of the columns, ascending.
        rows: a text for each layer, with one of `codes.CHARACTERS` for each column.
        alerts: results of `alert_of`, in order of time.
        last: results of `last_reading` by name of the layer.
        final: step and rows of the last column, if it is not the last of `steps`.
    """
    step, ends = final or (steps[-1] if steps else None, rows)
    kept, left_out = _latest_alerts(alerts)
    return {
        "schema": SCHEMA,
        "layers": [asdict(layer) for layer in layers],
        "groups": groups(layers),
        "steps": list(steps),
        "rows": list(rows),
        "alerts": kept,
        "alerts_left_out": left_out,
        "last": dict(last),
        "now": now(alerts, step, {layer.name: row[-1:] for layer, row in zip(layers, ends, strict=True)}),
    }


def groups(layers: Sequence[Layer]) -> list[Record]:
    """Return the order in which layers are shown: by kind, and within a kind by depth.

    Returns:
        For each group its `kind` and the indices of its `rows`. Layers of kinds with fewer than three layers form
        groups whose `kind` is empty.
    """
    by_kind: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        by_kind.setdefault(layer.kind, []).append(index)
    found: list[Record] = []
    for kind, rows in by_kind.items():
        if len(rows) >= MIN_GROUP:
            found.append({"kind": kind, "rows": sorted(rows, key=lambda row: natural_key(layers[row].name))})
        elif found and not found[-1]["kind"]:
            found[-1]["rows"] += rows
        else:
            found.append({"kind": "", "rows": rows})
    return found


def choose_columns(steps: Sequence[int], codes: NDArray[np.int8], limit: int) -> list[int]:
    """Return the indices of at most `limit` columns: first and last, changes of a phase, and others in between.

    Args:
        steps: of the columns, ascending.
        codes: of shape (columns, layers).
        limit: from 2 on.
    """
    if len(steps) <= limit:
        return list(range(len(steps)))
    changed = (np.flatnonzero((codes[1:] != codes[:-1]).any(axis=1)) + 1).tolist()
    kept = [changed[k] for k in spread([steps[k] for k in changed], limit // 2)]
    return sorted({*kept, *spread(steps, limit - len(kept))})


def spread(steps: Sequence[int], limit: int) -> list[int]:
    """Return the indices of at most `limit` steps, spread evenly from the first to the last, which are among them."""
    if len(steps) <= limit:
        return list(range(len(steps)))
    if limit < 2:
        return [len(steps) - 1]
    places = np.linspace(steps[0], steps[-1], limit)
    chosen = np.searchsorted(np.asarray(steps), places, side="right") - 1
    return [int(k) for k in np.unique(chosen)]


def last_reading(step: int, measures: Sequence[float]) -> Record:
    """Return the row of a layer in the table: the step of its last reading, and the values of `MEASURES`."""
    return {"step": step} | {name: short(value) for name, value in zip(MEASURES, measures, strict=False)}


def lines(steps: Sequence[int], columns: Iterable[Sequence[float]]) -> Record:
    """Return the data of the lines of a layer, from its steps and a sequence of values for each of `MEASURES`."""
    values = {name: [short(value) for value in column] for name, column in zip(MEASURES, columns, strict=False)}
    return {"schema": SCHEMA, "steps": list(steps), "values": values}


def frames(steps: Sequence[int], records: Sequence[Record]) -> Record:
    """Return the spectra of a layer, from its steps and records of `frame_of`."""
    return {"schema": SCHEMA, "steps": list(steps), "frames": list(records)}


def short(value: Any) -> float | None:
    """Return a number rounded to four digits, more than a view can show; None if it is not finite."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _latest_alerts(alerts: Sequence[Record]) -> tuple[list[Record], int]:
    """Return at most `MAX_ALERTS` alerts in their order, and the number of omitted alerts."""
    if len(alerts) <= MAX_ALERTS:
        return list(alerts), 0
    open_ids = {alert["id"] for alert in firing(alerts)[: MAX_ALERTS // 2]}
    needed = dict.fromkeys([k for k, alert in enumerate(alerts) if alert["id"] in open_ids][-MAX_ALERTS // 2 :])
    others = [k for k in range(len(alerts)) if k not in needed][-(MAX_ALERTS - len(needed)) :]
    return [alerts[k] for k in sorted([*needed, *others])], len(alerts) - len(needed) - len(others)
