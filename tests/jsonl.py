"""Read the JSONL of a run."""

import json
from pathlib import Path
from typing import Any

import pytest


def _refuse(constant: str) -> None:
    """Fail: Python's parser reads NaN, which JSON does not have."""
    pytest.fail(f"{constant} is not JSON")


def records_in(path: Path) -> list[dict[str, Any]]:
    """Return the objects in the file, read as strict JSON."""
    return [json.loads(line, parse_constant=_refuse) for line in path.read_text("utf-8").splitlines()]
