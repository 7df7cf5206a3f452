"""Thousands of readings: what is held does not grow, and nothing is left."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_nothing_grows_and_nothing_is_left() -> None:
    """1000 steps and 100 readings, in a process of their own; the script has 20 000 by default, and both modes."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.soak", "--steps", "1000", "--mode", "thread"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    lines = done.stdout.splitlines()
    assert int(lines[0].split()[2]) == 100
    memory = [float(number) for number in lines[1].partition(":")[2].split()]
    # The first picture, which loads matplotlib, is drawn in the first tenths.
    assert max(memory[5:]) / memory[5] < 1.02
    assert lines[3] == "threads 1 -> 1, open files {0} -> {0}".format(lines[3].split()[-1])
