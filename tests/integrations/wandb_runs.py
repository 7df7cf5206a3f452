"""Run scripts with Weights & Biases in processes of their own, and read the rows that they leave."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integrations import wandb_files


def environment(folder: Path) -> Mapping[str, str]:
    """After the first run of a process W&B does not look at its environment again, so runs have their own process."""
    names = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    for name in names:
        (folder / name).mkdir()
    places = {name: str(folder / name) for name in names}
    return os.environ | places | {"WANDB_SILENT": "true", "HOME": str(folder)}


def run(arguments: list[str], folder: Path) -> None:
    """Run Python in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def numbers(rows: list[dict[str, Any]]) -> set[str]:
    """Return the keys of scalars; a picture has several parts behind its key."""
    keys = {key for row in rows for key, value in row.items() if is_number(value)}
    return {key for key in keys if key.startswith("esdmon_") and not key.startswith("esdmon_picture/")}


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def ours(folder: Path) -> list[dict[str, Any]]:
    return [row for row in wandb_files.rows(folder) if "esdmon/step" in row]
