"""A finished run, read back from its JSONL, and its rules asked again: thresholds are tried without training anew."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from esdmon.alerts import AlertBook, AlertRule
from esdmon.errors import InputError
from esdmon.records import SCHEMA, Alert, Coverage, LayerReport, Record, Report
from esdmon.spectrum import Phase

FILE = "esdmon.jsonl"
"""What the file is called in the folder of a run."""
_FIELDS = {field.name for field in fields(LayerReport)}
_DERIVED = {"schema", "kind", "Q", "n_eigenvalues", "age", "phase_code"}


def replay(run: str | Path, rules: Iterable[AlertRule]) -> list[Alert]:
    """The alerts that rules would have raised in a run, in order. Their `time` is NaN.

    Args:
        run: the JSONL of a run, or the folder it lies in; of several runs in one file, each begins anew.
        rules: those to ask.

    Raises:
        InputError: where there is no such file, or it holds something else.
    """
    rules = tuple(rules)
    book, last = AlertBook(rules), -1
    alerts: list[Alert] = []
    for report in reports(run):
        if report.step <= last:
            book = AlertBook(rules)
        last = report.step
        alerts += book.take(report, time=math.nan)
    return alerts


def reports(run: str | Path) -> Iterator[Report]:
    """The reports of a run, one after the other.

    Raises:
        InputError: likewise.
    """
    path = _file(run)
    latest: dict[str, LayerReport] = {}
    summaries, last = 0, -1
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            record = _record(line, path, number)
            if record is None:
                break
            if record["kind"] == "layer":
                if record["step"] < last:  # another run, appended to the file
                    latest, last = {}, record["step"]
                latest[record["name"]] = layer_from_record(record)
            elif record["kind"] == "summary":
                summaries, last = summaries + 1, record["step"]
                yield _report(record, latest)
    if not summaries:
        raise InputError(f"{path} holds no readings: there is nothing to replay")


def layer_from_record(record: Mapping[str, Any]) -> LayerReport:
    """The layer of which `LayerReport.to_record` made this; of its spectrum nothing is left."""
    known = {key: value for key, value in record.items() if key in _FIELDS}
    numbers = {
        key: math.nan if value is None else float(value)
        for key, value in record.items()
        if key not in _FIELDS | _DERIVED
    }
    return LayerReport(
        **known
        | {
            "phase": Phase(record["phase"]),
            "aliases": tuple(record["aliases"]),
            "update_ratio": math.nan if record["update_ratio"] is None else record["update_ratio"],
            "measures": {key: value for key, value in numbers.items() if not key.endswith("_null")},
            "nulls": {key.removesuffix("_null"): value for key, value in numbers.items() if key.endswith("_null")},
        }
    )


def _report(summary: Record, latest: dict[str, LayerReport]) -> Report:
    step = summary["step"]
    still, frozen, unchanged = (set(summary.get(key, ())) for key in ("still", "frozen", "unchanged"))
    layers = []
    for name, layer in latest.items():
        if layer.step == step:
            layers.append(layer)
            continue
        # A drift is not written, but for those that stand still.
        drift = 0.0 if name in still | frozen else math.inf if layer.stands_still else math.nan
        trainable = layer.trainable and name not in frozen
        layers.append(replace(layer, emitted_step=step, trainable=trainable, drift=drift, unchanged=name in unchanged))
    overhead = summary.get("overhead")
    return Report(
        step,
        tuple(layers),
        Coverage(0, 0),
        waiting=tuple(summary.get("waiting", ())),
        overhead=math.nan if overhead is None else overhead,
        host_step=summary.get("host_step"),
    )


def _file(run: str | Path) -> Path:
    path = Path(run).expanduser()
    if path.is_dir():
        path /= FILE
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the JSONL of a run, or its folder")
    return path


def _record(line: str, path: Path, number: int) -> Record | None:
    """A line as a record; None for one that a kill has cut short."""
    try:
        record = json.loads(line)
    except ValueError as error:
        if not line.endswith("\n"):
            return None
        raise InputError(f"{path}, line {number}, is no JSON") from error
    if not isinstance(record, dict) or not {"schema", "kind", "step"} <= record.keys():
        raise InputError(f"{path}, line {number}, is none of esdmon's: it has no schema, kind and step")
    if record["schema"] != SCHEMA:
        raise InputError(f"{path}, line {number}, has schema {record['schema']!r}; this version reads {SCHEMA}")
    return record
