"""Readers of the files of an offline W&B run: records framed as in LevelDB's log, 32 KiB blocks behind 7 bytes."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
CLOCK = {"_timestamp", "_runtime"}


def records(folder: Path) -> Iterator[Any]:
    """Yield the protobuf records of the one run in a folder; after `wandb.teardown()`."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("run-*.wandb")
    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7])[:2] == (b":W&B", 0xBEE1)
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if not kind:
            return
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            yield record
            parts = b""


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return what was logged, row by row."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def axes(folder: Path) -> dict[str, str]:
    """Return the axis of each metric, by its last definition."""
    return {
        record.metric.name or record.metric.glob_name: record.metric.step_metric
        for record in records(folder)
        if record.WhichOneof("record_type") == "metric"
    }


def alerts(folder: Path) -> list[tuple[str, str, str, int]]:
    """Return title, text, level and waiting time of each alert."""
    found = [record.alert for record in records(folder) if record.WhichOneof("record_type") == "alert"]
    return [(alert.title, alert.text, alert.level, alert.wait_duration) for alert in found]


def users(folder: Path) -> list[dict[str, Any]]:
    """Return the user's values row by row: without ours and W&B's clock, and without rows that hold nothing else."""
    kept = [
        {key: value for key, value in row.items() if not key.startswith("esdmon") and key not in CLOCK}
        for row in rows(folder)
    ]
    return [row for row in kept if row.keys() - {"_step"}]


def summary(folder: Path) -> dict[str, Any]:
    """Return the run's summary at the end."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found
