"""Records to write to a JSONL, and readers of what was written."""

import json
import math
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from esdmon.records import Alert, Coverage, LayerReport, Report
from esdmon.sinks import JsonlSink

LAYER = LayerReport("fc1", "ok", 5, N=4, M=2, measures={"alpha": 2.5, "xmin": math.nan}, nulls={"alpha": math.inf})


REPORT = Report(5, (LAYER, replace(LAYER, name="größe·层")), Coverage(8, 10), seconds=0.5)


ALERT = Alert(
    "rank_collapse:fc1",
    "rank_collapse",
    "error",
    "firing",
    "fc1",
    ("fc1",),
    step=5,
    since=3,
    message="fc1: rank 1 of 2.",
    evidence={"hard_rank": 1.0, "stable_rank": math.nan},
)


LINE = b'{"schema": 1, "kind": "summary", "run": "a", "step": 1}'


def write(path: Path, *records: Report | Alert) -> None:
    """Open a file, write records and close it: one run of a script."""
    sink = JsonlSink(path)
    for record in records:
        if isinstance(record, Report):
            sink.write(record)
        else:
            sink.alert(record)
    sink.close()


def started(path: Path, run: str) -> JsonlSink:
    """Return a sink of the run with this id."""
    sink = JsonlSink(path)
    sink.start(run)
    return sink


def written(path: Path) -> list[tuple[str, int]]:
    """Return the run and the step of each whole line."""
    found = []
    for line in path.read_text().splitlines():
        with suppress(ValueError, TypeError):
            found.append((json.loads(line)["run"], json.loads(line)["step"]))
    return found


def append(path: Path, run: str, *steps: int) -> None:
    with closing(started(path, run)) as sink:
        for step in steps:
            sink.alert(replace(ALERT, step=step))
