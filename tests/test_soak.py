"""Thousands of readings: what is held does not grow, and nothing is left."""

from pathlib import Path

import pytest

from tests.benchmarks.soak import soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_nothing_grows_and_nothing_is_left(mode: str, tmp_path: Path) -> None:
    """2500 steps and 250 readings; tests/benchmarks/soak.py runs 20 000."""
    soaked = soak(2500, mode, tmp_path)
    assert soaked.readings >= 200
    assert max(soaked.memory[1:]) / soaked.memory[1] < 1.02
    assert soaked.threads[1] <= soaked.threads[0]
    assert soaked.files[1] <= soaked.files[0]
