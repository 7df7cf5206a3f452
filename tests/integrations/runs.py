"""What the tests of the callbacks read of a run, and jobs of two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esdmon import Monitor
from tests.event_files import events_of
from tests.jsonl import records_in


def monitor_of(callback: Any) -> Monitor:
    """The monitor of a callback that has begun to train."""
    monitor: Monitor | None = callback.monitor
    assert monitor is not None
    return monitor


def remembered_steps(callback: Any, layer: str) -> list[int]:
    """The steps of the readings of a layer that the alert rules look back on, as the monitor saves them."""
    alerts = monitor_of(callback).state_dict()["parts"]["alerts"]
    steps: list[int] = alerts["memory"]["layers"][layer]["steps"][0]
    return steps


def summary_steps(file: Path) -> list[int]:
    """The steps of the summaries in a JSONL file."""
    records = records_in(file)
    return [record["step"] for record in records if record["kind"] == "summary"]


def scalar_steps(folder: Path, tag: str) -> list[int]:
    """The steps of a series in TensorBoard."""
    return [point.step for point in events_of(folder).Scalars(tag)]


def run_script(name: str, folder: Path) -> None:
    """Run a script beside this file in a process of its own, with the paths of the tests, and give it a folder."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(name)), str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "integrations")])},
    )
    assert done.returncode == 0, done.stderr


def results_of_ranks(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two ranks have left in a folder."""
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def assert_sharded_weights_were_read(folder: Path, names: list[str]) -> None:
    """Check what two ranks have left in a folder: equal results, and a last reading of the weights as trained."""
    first, second = results_of_ranks(folder)
    assert first == second
    assert (first["steps"], first["errors"]) == (20, [])
    records = records_in(folder / "a.jsonl")
    layers = [record for record in records if record["kind"] == "layer" and record["status"] == "ok"]
    assert {layer["name"] for layer in layers} == set(names)
    last = [layer for layer in layers if layer["name"] == names[0]][-1]
    assert last["step"] == 20
    assert last["frobenius_norm"] == pytest.approx(first["norm"], rel=1e-4)
