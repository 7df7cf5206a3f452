"""Trainings whose readings are finished by worker processes, and what tests ask of those."""

import time
from pathlib import Path
from typing import Any

from tests.runtime.workers.training import Training

LONG = 60.0
"""Seconds that nothing takes."""


class Pids:
    """The worker processes that were started during a test, in order."""

    def __init__(self) -> None:
        self.started: list[int] = []

    @property
    def last(self) -> int:
        return self.started[-1]


def has_ended(pid: int) -> bool:
    """Whether a process ends within the time that nothing takes; a zombie has ended."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def training(**options: Any) -> Training:
    return Training(mode="process", **({"budget": None, "every": 1} | options))
