"""Fixtures for sinks."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path in a folder that does not exist yet."""
    return tmp_path / "runs" / "a" / "esdmon.jsonl"
