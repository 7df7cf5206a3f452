"""Reads what Weights & Biases wrote offline: records in the framing of LevelDB's log, 32 KiB blocks behind 7 bytes."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
CLOCK = {"_timestamp", "_runtime"}


def records(folder: Path) -> Iterator[Any]:
    """The protobuf records of the one run in a folder; after `wandb.teardown()`."""
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
    """What was logged, row by row."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def axes(folder: Path) -> dict[str, str]:
    """The axis that each metric was defined with; the last that was said."""
    return {
        record.metric.name or record.metric.glob_name: record.metric.step_metric
        for record in records(folder)
        if record.WhichOneof("record_type") == "metric"
    }


def alerts(folder: Path) -> list[tuple[str, str, str, int]]:
    """Title, text and level."""
    found = [record.alert for record in records(folder) if record.WhichOneof("record_type") == "alert"]
    return [(alert.title, alert.text, alert.level, alert.wait_duration) for alert in found]


def users(folder: Path) -> list[dict[str, Any]]:
    """The rows without what is ours and W&B's clock; without those that hold nothing else."""
    kept = [
        {key: value for key, value in row.items() if not key.startswith("esdmon") and key not in CLOCK}
        for row in rows(folder)
    ]
    return [row for row in kept if row.keys() - {"_step"}]


def summary(folder: Path) -> dict[str, Any]:
    """The run's summary as it is at the end."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found
