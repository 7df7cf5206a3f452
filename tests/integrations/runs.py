"""What the tests of the callbacks read of a run, and jobs of two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esdmon import Monitor


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
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == "summary"]


def events(folder: str | Path) -> EventAccumulator:
    """All that TensorBoard reads in a folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def scalar_steps(folder: Path, tag: str) -> list[int]:
    """The steps of a series in TensorBoard."""
    return [point.step for point in events(folder).Scalars(tag)]


def run_script(*command: str) -> None:
    """Run a script beside this file in a process of its own, with the paths of the tests."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "integrations")])},
    )
    assert done.returncode == 0, done.stderr
