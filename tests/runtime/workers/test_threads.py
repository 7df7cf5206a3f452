"""Jobs in daemon threads: in order, as many at once as are allowed."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest

from esdmon.runtime.workers.threads import Threads

_LONG = 30.0  # seconds that nothing here takes


class Jobs:
    """Jobs that wait until they are let go, and note when they begin."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, threading.Event] = {}
        self._changed = threading.Condition()

    def job(self, name: str) -> Callable[[], str]:
        gate = self._gates[name] = threading.Event()

        def run() -> str:
            with self._changed:
                self.begun.append(name)
                self._changed.notify_all()
            assert gate.wait(_LONG)
            return name

        return run

    def let_go(self, *names: str) -> None:
        for name in names or tuple(self._gates):
            self._gates[name].set()

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= set(self.begun), _LONG)


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.let_go()


def test_one_at_a_time_in_order(jobs: Jobs) -> None:
    threads = Threads()
    futures = [threads.submit(jobs.job(name)) for name in "abc"]
    jobs.wait_for("a")
    assert (jobs.begun, threads.running) == (["a"], 1)
    jobs.let_go()
    assert [future.result(_LONG) for future in futures] == ["a", "b", "c"]
    assert jobs.begun == ["a", "b", "c"]


def test_as_many_at_once_as_are_allowed_now(jobs: Jobs) -> None:
    allowed = [2]
    threads = Threads(allowed=lambda: allowed[0])
    futures = [threads.submit(jobs.job(name)) for name in "abcd"]
    jobs.wait_for("a", "b")
    assert threads.running == 2
    allowed[0] = 0
    jobs.let_go("a", "b")
    assert futures[0].result(_LONG) + futures[1].result(_LONG) == "ab"
    assert sorted(jobs.begun) == ["a", "b"]
    allowed[0] = 3
    threads.wake()
    jobs.wait_for("c", "d")
    jobs.let_go()
    assert futures[3].result(_LONG) == "d"


def test_a_job_that_runs_alone_is_a_barrier(jobs: Jobs) -> None:
    """It says that all before it are finished, as the answer to another rank does."""
    threads = Threads(allowed=lambda: 4)
    futures = [threads.submit(jobs.job(name), alone=name == "c") for name in "abcd"]
    jobs.wait_for("a", "b")
    jobs.let_go("a")
    futures[0].result(_LONG)
    assert sorted(jobs.begun) == ["a", "b"]
    jobs.let_go("b")
    jobs.wait_for("c")
    assert "d" not in jobs.begun
    jobs.let_go()
    assert futures[3].result(_LONG) == "d"


def test_closing_cancels_what_has_not_begun(jobs: Jobs) -> None:
    threads = Threads()
    running, waiting = (threads.submit(jobs.job(name)) for name in "ab")
    jobs.wait_for("a")
    threads.close()
    jobs.let_go()
    assert running.result(_LONG) == "a"
    with pytest.raises(CancelledError, match=r"^$"):
        waiting.result(_LONG)
    threads.join(_LONG)
    assert threads.running == 0


@pytest.mark.parametrize("error", [ZeroDivisionError("in a job"), SystemExit("from outside")])
def test_what_a_job_raises_is_its_result(error: BaseException) -> None:
    """The thread goes on."""

    def fail() -> None:
        raise error

    threads = Threads()
    failed, after = threads.submit(fail), threads.submit(lambda: 1)
    assert failed.exception(_LONG) is error
    assert after.result(_LONG) == 1


def test_each_thread_is_prepared_once() -> None:
    prepared: list[int] = []
    threads = Threads(lambda: prepared.append(threading.get_ident()))
    assert [threads.submit(threading.get_ident).result(_LONG) for _ in range(3)] == prepared * 3


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Let threads take turns every few lines."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_switches")
def test_an_exception_from_outside_loses_no_job() -> None:
    """Raised in a thread while it runs a job, ends one, waits or ends: each job has its result, or that exception."""
    threads = Threads()

    def wait(future: Future[str]) -> None:
        until = time.monotonic() + _LONG
        while not future.done():
            assert time.monotonic() < until
            threads.wake()  # as at each step of a training

    for number in range(1000):
        future = threads.submit(partial(str, number))
        if number % 4:
            wait(future)  # then the thread ends the job, and waits for the next
        for _ in range(number % 97):
            threading.get_ident()
        for worker in [each for each in threading.enumerate() if each.name == "esdmon-0"]:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit))
        wait(future)
        assert isinstance(future.exception(), SystemExit) or future.result() == str(number)
    threads.join(_LONG)
    assert threads.running == 0


def refuse_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next start of a thread fail, as where a control group limits their number."""
    start = threading.Thread.start

    def refuse(_thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_jobs_run_again_once_a_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job for which there was none is refused, as its reading is then read again, and must not be read twice."""
    threads, done = Threads(), list[str]()
    refuse_one_thread(monkeypatch)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.submit(lambda: done.append("first"))
    threads.submit(lambda: done.append("second")).result(timeout=_LONG)
    threads.close()
    assert done == ["second"]


def test_a_job_waits_for_a_running_thread_where_no_other_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, gate = Threads(allowed=lambda: 2), threading.Event()
    first = threads.submit(lambda: gate.wait(_LONG))
    refuse_one_thread(monkeypatch)
    second = threads.submit(lambda: "done")
    gate.set()
    assert (first.result(timeout=_LONG), second.result(timeout=_LONG)) == (True, "done")
    threads.close()
