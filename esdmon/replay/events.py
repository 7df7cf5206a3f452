"""Read the reports and alerts of runs from the lines of a JSONL."""

import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from esdmon.errors import InputError
from esdmon.isolation import describe
from esdmon.records import SCHEMA, Alert, Coverage, LayerReport, Record, Report, Screened
from esdmon.records.serialization import alert_from_record, layer_from_record
from esdmon.records.shortening import Restorer
from esdmon.records.text import count
from esdmon.records.typed import built
from esdmon.records.values import is_number
from esdmon.replay.files import KEYS, find_file, not_json, not_ours, nothing_read, unreadable

_log = logging.getLogger("esdmon")
_READ = {
    "layer": "a valid reading of a layer",
    "screened": "valid norms of a layer",
    "summary": "a valid summary",
    "alert": "a valid alert",
}
"""What a line of each kind is, in errors; lines of other kinds are skipped."""


@dataclass(eq=False, slots=True)
class RunState:
    """The state of one run in a file, up to the line that was read last."""

    latest: dict[str, LayerReport] = field(default_factory=dict)
    """The latest reading of each layer."""
    screened: dict[str, Screened] = field(default_factory=dict)
    """The latest screening of each layer."""
    step: int = -1
    """Step of the last report; -1 before the first."""
    run: str = ""
    """Id in its lines; empty in files of older versions."""


def reports(run: str | Path) -> Iterator[Report]:
    """Yield the reports of a run; if the file contains several runs, in the order of the file.

    Args:
        run: the JSONL of a run, or its folder.

    Raises:
        InputError: without such a file, or if it is not a JSONL of esdmon.
    """
    return (event for _, event in events_by_run(run) if isinstance(event, Report))


def events_by_run(run: str | Path) -> Iterator[tuple[RunState, Report | Alert]]:
    """Yield the reports and alerts in a file, each with its run.

    Runs are distinguished by the id in their lines. If lines have no id, as in older versions, or an id occurs again, a
    step that does not follow that of the last report begins another run.

    Args:
        run: the JSONL of a run, or its folder.

    Raises:
        InputError: without such a file, or if it is not a JSONL of esdmon.
    """
    path = find_file(run)
    reader = EventReader(path)
    yield from reader.events(records(path))
    if all(each.step < 0 for each in reader.runs.values()):
        raise InputError(
            f"{nothing_read(path, reader.lines)}. The first readings are written at the first due step (every=): wait "
            "for it if the run is training, or pass another run."
        )


@final
class EventReader:
    """Turn records into reports and alerts, in as many pieces as they come in.

    Args:
        path: what errors call the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.runs: dict[str, RunState] = {}
        """The runs in the file by the id in their lines; of several with one id the last."""
        self.lines: Counter[str] = Counter()
        """Number of lines by their kind."""

    def events(self, found: Iterable[Record]) -> Iterator[tuple[RunState, Report | Alert]]:
        """Yield the reports and alerts of further records, each with its run."""
        for record in found:
            kind = str(record["kind"])
            self.lines[kind] += 1
            if kind not in _READ:
                continue
            run = self._run_of(record)
            try:
                event = _take(record, run)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(
                    f"{self._path}: a line of step {record['step']} is not {_READ[kind]}: {describe(error)}"
                ) from error
            if event is not None:
                yield run, event

    def _run_of(self, record: Record) -> RunState:
        run_id = str(record.get("run"))
        known = self.runs.get(run_id)
        # What was screened on an accelerator may be written at the due step after its own.
        is_free = record["kind"] in ("alert", "screened")
        if known is None or (not is_free and record["step"] <= known.step):
            known = self.runs[run_id] = RunState(run=str(record.get("run") or ""))
        return known


def _take(record: Record, run: RunState) -> Report | Alert | None:
    """Add a record to the state of its run, and return the report or the alert that it completes."""
    if record["kind"] == "alert":
        return alert_from_record(record)
    if record["kind"] == "summary":
        run.step = record["step"]
        return _report(record, run)
    if record["kind"] == "layer":
        layer = layer_from_record(record)
        run.latest[layer.name] = layer.settle(run.latest.get(layer.name))
    else:
        screened = Screened.from_record(record)
        run.screened[screened.name] = screened
    return None


def _report(summary: Record, run: RunState) -> Report:
    """Build the report of a summary line from the latest reading of each layer."""
    step = summary["step"]
    still, frozen, unchanged = (set(summary.get(key) or ()) for key in ("still", "frozen", "unchanged"))
    layers = []
    for name, layer in run.latest.items():
        if layer.step == step:
            layers.append(layer)
            continue
        drift = math.nan  # it is not written, but the summary lists the layers that do not move
        if name in still | frozen:
            drift = 0.0
        elif layer.stands_still:
            drift = math.inf
        trainable = layer.trainable and name not in frozen
        layers.append(replace(layer, emitted_step=step, trainable=trainable, drift=drift, unchanged=name in unchanged))
    read = {name: layer.step for name, layer in run.latest.items()}
    screened = tuple(each for each in run.screened.values() if each.is_after(read.get(each.name)))
    run.screened = {each.name: replace(each, is_new=False) for each in screened}
    fields = {
        "step": step,
        "layers": tuple(layers),
        "coverage": Coverage(0, 0),
        "waiting": tuple(summary.get("waiting") or ()),
        "overhead": summary.get("overhead"),
        "host_step": summary.get("host_step"),
        "firing": {
            key.removeprefix("alert_"): int(value) for key, value in summary.items() if key.startswith("alert_")
        },
        "extra": bool(summary.get("extra")),
        "screened": screened,
    }
    return built(Report, fields)


def records(path: Path) -> Iterator[Record]:
    """Yield all whole records of a JSONL, plain or gzipped, in the order of the file.

    Lines torn by a kill or a full disk are skipped and counted in the log.

    Raises:
        InputError: for a file that is not a JSONL of esdmon.
    """
    return parse(_lines(path), path, Restorer())


def parse(lines: Iterable[str], path: Path, restorer: Restorer) -> Iterator[Record]:
    """Yield the records of lines, as `records` does.

    Args:
        lines: lines of the file, or of its end.
        path: what errors and the log call the file.
        restorer: restores what is not repeated in each line.

    Raises:
        InputError: for lines that are not esdmon's.
    """
    torn = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == 1 and (line.endswith(("\n", "\r")) or not line.startswith("{")):
                raise not_json(line, f"{path}, line {number}") from error
            torn += line.endswith("\n")
            continue
        _check(record, f"{path}, line {number}")
        yield restorer.restore(record) if record["kind"] in ("layer", "summary") else record
    if torn:
        what = count(torn, "incomplete line")
        _log.warning("esdmon: %s: skipped %s, which a killed process or a full disk leaves behind.", path, what)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, decompressed; up to where a gzip member is not finished."""
    if path.suffix != ".gz":
        try:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                yield from file
        except OSError as error:
            raise unreadable(path, error) from error
        return
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace") as packed:
            yield from packed
    except gzip.BadGzipFile as error:
        raise InputError(f"{path} is not a gzip file. Pass the JSONL of a run, or its folder.") from error
    except (EOFError, zlib.error):
        _log.warning(
            "esdmon: %s ends within compressed data: it is cut off, damaged, or still being written. Later lines are "
            "missing.",
            path,
        )
    except OSError as error:
        raise unreadable(path, error) from error


def _check(record: object, where: str) -> None:
    if not isinstance(record, dict) or not record.keys() >= {*KEYS}:
        raise not_ours(record, where)
    if record["schema"] != SCHEMA:
        raise InputError(f"{where}: unknown schema {record['schema']!r}; this version reads {SCHEMA}. Upgrade esdmon.")
    if not (isinstance(record["step"], int) and is_number(record["step"])):
        raise InputError(f"{where}: step {record['step']!r:.60} is not a whole number")
