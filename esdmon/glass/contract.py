"""The JSON that the page reads, from records or from numbers by layer. No I/O, and no matter where a run is stored.

The page asks for three things of a run, each with `"schema": 1`; it ignores keys that it does not know:

- `overview`: names of layers, steps, a row of phases for each layer with a character a step, alerts, the table of last
  readings, and in words what is wrong now;
- `lines` of a layer: the measures of `MEASURES` at each of its readings;
- `frames` of a layer: its spectra, with all that is needed to draw each one.

Steps are those of the horizontal axis: the Trainer's, where there is one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from esdmon.present.scalars import kind_of
from esdmon.records import SCHEMA, Alert, LayerReport, Record
from esdmon.records.serialization import esd_to_record
from esdmon.records.table import natural_key
from esdmon.records.text import count, named
from esdmon.records.timeline import SEVERITIES
from esdmon.spectrum import Phase

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
"""Numbers of a layer that have lines, in the order of the tensor `esdmon/measures`; new ones are appended."""
FIT: Final = ("alpha", "alpha_stderr", "xmin", "n_tail", "bulk_sigma", "bulk_edge", "n_spikes", "mp_soft_rank")
"""Measures that are drawn into a spectrum, or written beside it."""
NOT_READ: Final = -2
"""Code of a layer that was not read yet."""
CHARACTERS: Final[Mapping[int, str]] = {
    **{phase.code: str(phase.code) for phase in Phase},
    Phase.UNCLASSIFIED.code: "-",
    NOT_READ: ".",
    -3: "N",
    -4: "Z",
    -5: "F",
    -6: "S",
}
"""The character of each code. Below `NOT_READ` are layers without numbers, by status."""
_STATUS_CODES: Final = {"nonfinite": -3, "degenerate": -4, "failed": -5, "skipped": -6}
MAX_ALERTS: Final = 400
"""Alerts in one overview: those that fire, and the latest of the others. Our choice."""
MIN_GROUP: Final = 3
"""Layers of a kind that make a group of their own. Our choice."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is the same at each reading of a layer."""

    name: str
    kind: str
    """The name without the layer's place in a stack of similar ones, such as `h.*.mlp`."""
    M: int = 0
    """Shorter side of the matrix; 0 if it was not read yet."""
    N: int = 0
    slices: int = 1

    @classmethod
    def of(cls, layer: LayerReport) -> "Layer":
        """Return that of a reading."""
        return cls(layer.name, kind_of(layer.name), layer.M, layer.N, layer.slices)

    @classmethod
    def unread(cls, name: str) -> "Layer":
        """Return that of a layer of which only the name is known."""
        return cls(name, kind_of(name))


def code_of(layer: LayerReport) -> int:
    """Return the code of a reading: that of its phase, 0 to 5 and -1, or below -2 that of another status than `ok`."""
    return layer.phase.code if layer.status == "ok" else _STATUS_CODES[layer.status]


def measures_of(layer: LayerReport) -> list[float]:
    """Return the values of `MEASURES`, NaN for those that are undefined."""
    own = {
        "alpha_is_meaningful": float(layer.alpha_is_meaningful),
        "update_ratio": layer.update_ratio,
        **{f"{name}_null": value for name, value in layer.nulls.items()},
    }
    return [own.get(name, layer.measures.get(name, math.nan)) for name in MEASURES]


def frame_of(layer: LayerReport) -> Record:
    """Return the spectrum of a reading that has one: `esd` as in the JSONL, the shape, and what is drawn into it.

    Raises:
        ValueError: for a layer without a histogram.
    """
    if layer.esd is None:
        msg = f"{layer.name} has no histogram"
        raise ValueError(msg)
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
    """Return the record of an alert, drawn at `x`; the step since which it holds is scaled as `x` is."""
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
    """Return what the first screen shows.

    Args:
        layers: the layers of the run.
        steps: of the columns, ascending.
        rows: for each layer its codes, one of `CHARACTERS` for each column.
        alerts: records of `alert_of`, in order of time.
        last: the last reading of each layer by name, as of `last_reading`.
        final: step and rows of the last column, where it is not the last of `steps`.
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
    """Return the order in which layers are shown, by kind and within it by depth.

    Returns:
        For each group its `kind` and the indices of its `rows`. Layers of which there are not three of a kind stand
        together in groups whose `kind` is empty.
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
    """Return the indices of at most `limit` columns: the first and last, changes of a phase, others between.

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


def rows_of(codes: NDArray[np.int8]) -> list[str]:
    """Return a text for each layer, with one of `CHARACTERS` for each column, from codes of shape (columns, layers)."""
    known = sorted(CHARACTERS)
    table = np.array([ord(CHARACTERS[code]) for code in known], dtype=np.uint8)
    characters = table[np.clip(codes.astype(int) - known[0], 0, len(table) - 1)]
    return [row.tobytes().decode("ascii") for row in np.ascontiguousarray(characters.T)]


def last_reading(step: int, measures: Sequence[float]) -> Record:
    """Return the table's row of a layer: the step of its reading, and the values of `MEASURES`."""
    return {"step": step} | {name: short(value) for name, value in zip(MEASURES, measures, strict=False)}


def lines(steps: Sequence[int], columns: Iterable[Sequence[float]]) -> Record:
    """Return the lines of a layer, from its steps and a sequence of values for each of `MEASURES`."""
    values = {name: [short(value) for value in column] for name, column in zip(MEASURES, columns, strict=False)}
    return {"schema": SCHEMA, "steps": list(steps), "values": values}


def frames(steps: Sequence[int], records: Sequence[Record]) -> Record:
    """Return the spectra of a layer, from its steps and records of `frame_of`."""
    return {"schema": SCHEMA, "steps": list(steps), "frames": list(records)}


def short(value: Any) -> float | None:
    """Return a number to four digits, which is more than a view can show; None if it is not finite."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def firing(alerts: Iterable[Record]) -> list[Record]:
    """Return the alerts that fire at the end, the most severe first, then those that began first."""
    latest: dict[str, Record] = {}
    for alert in alerts:
        latest[alert["id"]] = alert
    open_ones = [alert for alert in latest.values() if alert["state"] == "firing"]
    return sorted(open_ones, key=lambda alert: (_rank(alert), alert["since"]))


def now(alerts: Sequence[Record], step: int | None, codes: Mapping[str, str]) -> Record:
    """Return in words what is wrong at the end of a run, from its alerts and the last character of each layer.

    Returns:
        `level` (a severity, or `quiet`), `title`, and `items` with `layer`, `since`, `title`, `text` and `lines`, one
        for each of a few layers.
    """
    if step is None:
        return {"level": "quiet", "title": "No reading yet. The first one comes after every= steps.", "items": []}
    worst = firing(alerts)
    items = [
        {
            "layer": alert["layer"],
            "since": alert["since"],
            "severity": alert["severity"],
            "title": f"{_place(alert)}: {alert['rule'].replace('_', ' ')} since step {alert['since']}"
            + (", a notice" if alert["severity"] == "info" else ""),
            "text": _without_heading(alert),
            "lines": alert.get("lines", []),
        }
        for alert in worst
    ]
    alerted = {name for alert in worst for name in alert["layers"]}
    items += [
        {
            "layer": name,
            "since": step,
            "severity": "warning",
            "title": f"{name}: {_NOT_OK[code]} at step {step}",
            "text": "This layer has no numbers. The JSONL has the reason.",
            "lines": [],
        }
        for name, code in codes.items()
        if code in _NOT_OK and name not in alerted
    ]
    if not items:
        return {"level": "quiet", "title": _quiet(alerts, step), "items": []}
    serious = [item for item in items if item["severity"] != "info"]
    return {
        "level": min((item["severity"] for item in items), key=SEVERITIES.index),
        "title": f"{count(len(items), 'problem')} now, at step {step}"
        + ("" if serious else ", none of which is a warning"),
        "items": items,
    }


_NOT_OK: Final = {CHARACTERS[-3]: "NaN or infinity in the weight", CHARACTERS[-5]: "the reading failed"}


def _quiet(alerts: Sequence[Record], step: int) -> str:
    fired = {alert["id"]: alert for alert in alerts}
    if not fired:
        return f"All quiet at step {step}: no alert has fired."
    last = max(fired.values(), key=lambda alert: alert["step"])
    return (
        f"All quiet at step {step}. {len(fired)} earlier {'alert is' if len(fired) == 1 else 'alerts are'} resolved; "
        f"the last was {last['rule'].replace('_', ' ')} of {_place(last)}, from step {last['since']} to {last['step']}."
    )


def _place(alert: Record) -> str:
    return named(alert["layers"], most=3) or "the whole run"


def _without_heading(alert: Record) -> str:
    """Return the message without the rule, and without the layers unless it is about other ones than the title."""
    message = str(alert["message"])
    heading, found, text = message.partition(f"{alert['rule']}: ")
    if not found or len(heading) >= len(text):
        return message
    text = text[:1].upper() + text[1:]
    return text if heading in ("", f"{_place(alert)}: ") else f"{heading}{text}"


def _rank(alert: Record) -> int:
    return SEVERITIES.index(alert["severity"]) if alert["severity"] in SEVERITIES else len(SEVERITIES)


def _latest_alerts(alerts: Sequence[Record]) -> tuple[list[Record], int]:
    """Return at most `MAX_ALERTS` in their order, and how many were left out."""
    if len(alerts) <= MAX_ALERTS:
        return list(alerts), 0
    open_ids = {alert["id"] for alert in firing(alerts)[: MAX_ALERTS // 2]}
    needed = [k for k, alert in enumerate(alerts) if alert["id"] in open_ids][-MAX_ALERTS // 2 :]
    others = [k for k in range(len(alerts)) if k not in set(needed)][-(MAX_ALERTS - len(needed)) :]
    return [alerts[k] for k in sorted(needed + others)], len(alerts) - len(needed) - len(others)
