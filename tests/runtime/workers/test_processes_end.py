"""How worker processes end: with the monitor, or with the process that trains, whatever they do then."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from esdmon.runtime.workers import worker as worker_module
from esdmon.runtime.workers.worker import Worker, WorkerError
from tests.runtime.workers.worker_processes import LONG, Pids, has_ended, training

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="worker processes need Linux"),
    pytest.mark.usefixtures("pids"),
]


def test_close_ends_a_process_that_computes(pids: Pids, caplog: pytest.LogCaptureFixture) -> None:
    """Here one that is stopped, and would never finish. What is lost is logged, and nothing has failed."""
    others = set(threading.enumerate())  # of tests before
    run = training().train(1)
    run.watched.flush(LONG)
    os.kill(pids.last, signal.SIGSTOP)
    threads = set(threading.enumerate()) - others
    assert threads
    run.train(1)
    state = run.watched.state_dict()
    assert {layer["step"] for layer in state["parts"]["readings"].values()} == {1}
    run.watched.close(timeout=0)
    assert has_ended(pids.last)
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert run.watched.errors == ()
    assert " of step 2, not finished in time" in caplog.text
    assert "failed" not in caplog.text


def test_a_monitor_that_nobody_holds_leaves_no_process(pids: Pids) -> None:
    run = training().train(1)
    run.watched.flush(LONG)
    del run
    gc.collect()
    assert has_ended(pids.last)


class Descriptors(Dataset[int]):
    """A data set whose items are the descriptors of shared memory that the process has that gives them."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _index: int) -> int:
        return count_descriptors()


class Opened(Dataset[int]):
    """A data set whose item says how many of some descriptors are those of this file."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _index: int) -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{each}") == __file__ for each in self._descriptors)


def count_descriptors() -> int:
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            count += "memfd:esdmon" in str(each.readlink())
        except FileNotFoundError:  # that of the directory itself
            continue
    return count


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_are_forked_inherit_nothing() -> None:
    """Such as the workers of a DataLoader; the process of the readings goes on."""
    run = training().train(1)
    run.watched.flush(LONG)
    assert count_descriptors() == 1
    workers = list(worker_module._alive)
    loader = DataLoader(Descriptors(), num_workers=1, multiprocessing_context="fork")
    assert [int(batch) for batch in loader] == [0]
    run.train(1)
    run.watched.close()
    assert [len(report.new) for report in run.sink.reports] == [3, 3]
    assert count_descriptors() == 0
    unrelated = [os.open(__file__, os.O_RDONLY) for _ in range(9)]  # have numbers of descriptors that were closed
    assert {worker._memory for worker in workers} & set(unrelated)
    loader = DataLoader(Opened(unrelated), num_workers=1, multiprocessing_context="fork")
    assert [int(batch) for batch in loader] == [9]
    for each in unrelated:
        os.close(each)


_KILLED = """
import os, signal, torch, esdmon
from esdmon.runtime.workers import worker as module
model = torch.nn.Linear(64, 64)
monitor = esdmon.watch(model, every=1, mode="process", sinks=None, alerts=None, budget=None)
monitor.step()
monitor.flush(60)
(worker,) = module._alive
print(worker.pid, flush=True)
os.kill(worker.pid, signal.SIGSTOP)
monitor.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "", "raise KeyboardInterrupt"])
def test_the_process_ends_with_the_training(end: str) -> None:
    """However that ends, also while the process computes; here one that is stopped, and would never finish."""
    code = _KILLED + ("monitor.close(timeout=0)\n" if not end else "") + end
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=2 * LONG)
    assert has_ended(int(result.stdout.split()[0]))


def test_a_worker_that_was_closed_refuses_a_job() -> None:
    worker = Worker()
    worker.close()
    worker.close()
    job: Any = None
    with pytest.raises(WorkerError, match="the worker process is closed"):
        worker.run(job, np.zeros((1, 1, 1)))


def test_a_worker_that_has_ended_is_noticed_where_another_process_holds_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does that is forked while the worker is started: then the connection never ends."""
    start = worker_module._started
    held: list[int] = []

    def started(connection: int, memory: int, *, is_idle: bool) -> "subprocess.Popen[bytes]":
        held.append(os.dup(connection))
        return start(connection, memory, is_idle=is_idle)

    monkeypatch.setattr(worker_module, "_started", started)
    monkeypatch.setattr(worker_module, "_CHECK_SECONDS", 0.01)
    worker = Worker()
    errors: list[object] = []

    def read() -> None:
        job: Any = None
        with pytest.raises(WorkerError, match="was ended by signal 9") as error:
            worker.run(job, np.zeros((1, 1, 1)))
        errors.append(error)

    os.kill(worker.pid, signal.SIGSTOP)
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    os.kill(worker.pid, signal.SIGKILL)
    thread.join(LONG)
    assert len(errors) == 1
    worker.close()
    os.close(held.pop())


class Closing:
    """A job that closes its worker while it is sent, as the garbage collector may."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __reduce__(self) -> tuple[Any, ...]:
        self._worker.close()
        return int, ()


def test_a_worker_may_be_closed_by_the_thread_that_uses_it() -> None:
    worker = Worker()
    errors: list[object] = []

    def read() -> None:
        job: Any = Closing(worker)
        with pytest.raises(WorkerError, match="was ended by signal 9") as error:
            worker.run(job, np.zeros((1, 1, 1)))
        errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(LONG)
    assert len(errors) == 1
    assert has_ended(worker.pid)
    assert count_descriptors() == 0


def test_what_was_opened_for_a_worker_that_cannot_be_started_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error: here a search path with a null byte, which no environment takes."""
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere\0"])
    with pytest.raises(WorkerError, match="embedded null byte"):
        Worker()
    assert count_descriptors() == 0
