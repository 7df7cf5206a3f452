"""A finished run, read back from its JSONL, and its rules asked again: thresholds are tried without training anew."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from esdmon.alerts import AlertManager, AlertRule
from esdmon.errors import InputError
from esdmon.records import SCHEMA, Alert, Coverage, LayerReport, Record, Report
from esdmon.records.serialization import layer_from_record

_log = logging.getLogger("esdmon")
FILE = "esdmon.jsonl"
"""What the file is called in the folder of a run."""


@dataclass(eq=False, slots=True)
class Run:
    """One of the runs whose lines a file holds, as far as it was read."""

    latest: dict[str, LayerReport] = field(default_factory=dict)
    """The layers as they were read last."""
    step: int = -1
    """The step of its last report."""


def replay(run: str | Path, rules: Iterable[AlertRule]) -> list[Alert]:
    """Return the alerts that rules would have raised in a run, in order. Their `time` is NaN.

    Args:
        run: the JSONL of a run, or the folder it lies in; of several runs in one file, each is asked about by itself.
        rules: those to ask.

    Raises:
        InputError: where there is no such file, or it holds something else.
    """
    rules = tuple(rules)
    books: dict[Run, AlertManager] = {}
    alerts: list[Alert] = []
    for part, report in reports_by_run(run):
        if part not in books:
            books[part] = AlertManager(rules)
        alerts += books[part].take(report, time=math.nan)
    return alerts


def reports(run: str | Path) -> Iterator[Report]:
    """Return the reports of a run, one after the other; those of several runs in the order of the file.

    Raises:
        InputError: likewise.
    """
    return (report for _, report in reports_by_run(run))


def reports_by_run(run: str | Path) -> Iterator[tuple[Run, Report]]:
    """Return the reports in a file, each with the run that it is of.

    Runs are told apart by the id in their lines. Where lines have none, as those of older versions, or one id comes
    again, a step that is not after that of the last report is another run's.

    Raises:
        InputError: likewise.
    """
    path = _file(run)
    runs: dict[str, Run] = {}
    for record in _records(path):
        name = str(record.get("run"))
        if name not in runs or record["step"] <= runs[name].step:
            runs[name] = Run()
        part = runs[name]
        if record["kind"] == "layer":
            layer = _layer(record, path)
            part.latest[layer.name] = layer
        else:
            part.step = record["step"]
            yield part, _report(record, part.latest)
    if all(part.step < 0 for part in runs.values()):
        raise InputError(f"{path} holds no readings: there is nothing to replay")


def _layer(record: Record, path: Path) -> LayerReport:
    try:
        return layer_from_record(record)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a line of step {record['step']} is no reading of a layer: {error}") from error


def _report(summary: Record, latest: dict[str, LayerReport]) -> Report:
    step = summary["step"]
    still, frozen, unchanged = (set(summary.get(key) or ()) for key in ("still", "frozen", "unchanged"))
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
        waiting=tuple(summary.get("waiting") or ()),
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


def _records(path: Path) -> Iterator[Record]:
    """Return the lines of readings as records, without what a kill or a full disk has cut short."""
    torn = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                if number == 1 and line.endswith("\n"):
                    raise InputError(f"{path}, line {number}, is no JSON") from error
                torn += line.endswith("\n")
                continue
            _check(record, f"{path}, line {number},")
            if record["kind"] in ("layer", "summary"):
                yield record
    if torn:
        _log.warning("esdmon: %s: %d lines were cut short and are left out.", path, torn)


def _check(record: object, where: str) -> None:
    if not isinstance(record, dict) or not {"schema", "kind", "step"} <= record.keys():
        raise InputError(f"{where} is none of esdmon's: it has no schema, kind and step")
    if record["schema"] != SCHEMA:
        raise InputError(f"{where} has schema {record['schema']!r}; this version reads {SCHEMA}")
    if not isinstance(record["step"], int):
        raise InputError(f"{where} has step {record['step']!r}, which is no number of steps")
