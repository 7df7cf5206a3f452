"""What several tests of worker processes share."""

import subprocess
from collections.abc import Iterator

import pytest

from esdmon.runtime.workers import worker as worker_module
from tests.runtime.workers.worker_processes import Pids, has_ended


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pids]:
    """Note each worker process that is started, and check that none is left."""
    found, start = Pids(), worker_module._started

    def started(connection: int, memory: int, *, is_idle: bool) -> "subprocess.Popen[bytes]":
        process = start(connection, memory, is_idle=is_idle)
        found.started.append(process.pid)
        return process

    monkeypatch.setattr(worker_module, "_started", started)
    yield found
    for pid in found.started:
        assert has_ended(pid)
