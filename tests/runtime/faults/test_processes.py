"""Forks, killed workers and the end of a process: the training ends as without a monitor, and nothing hangs."""

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from esdmon.spectrum import Spectrum
from tests.jsonl import records_in
from tests.runtime.faults.disturbed import Plugin, Run, both_modes, slowly
from tests.summaries import without_summary


@pytest.mark.parametrize("in_a_reading", [True, False])
def test_a_worker_that_is_killed(in_a_reading: bool, undisturbed: list[float]) -> None:  # noqa: FBT001
    """From outside: the reading that runs has failed and says so, the next are as ever; between two, none has."""
    begun, gate, others = threading.Event(), threading.Event(), set(threading.enumerate())

    def wait(_spectrum: Spectrum) -> float:
        begun.set()
        return float(gate.wait(60))

    run = Run(mode="thread", plugins=[Plugin(wait)])

    def kill(step: int) -> None:
        if step == 4:
            assert begun.wait(60)
            if not in_a_reading:
                gate.set()
                run.monitor.flush()
            mine = set(threading.enumerate()) - others
            (worker,) = [thread for thread in mine if thread.name.startswith("esdmon")]
            reached = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit)
            )
            assert reached == 1
            gate.set()
        if step > 4:
            run.monitor.flush()

    run.train(before=kill)
    run.monitor.close()
    assert run.losses == undisturbed
    layers = [layer for report in run.sink.reports for layer in report.new]
    failed = [layer.reason for layer in layers if layer.status != "ok"]
    assert failed == ["the worker was stopped: SystemExit: "] * in_a_reading
    assert run.sink.reports[-1]["0"].status == run.sink.reports[-1]["2"].status == "ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_midst_of_work(undisturbed: list[float], tmp_path: Path) -> None:
    """Loaders fork while the thread computes; a child that steps, and ends, writes nothing."""
    run = Run(mode="thread", plugins=[Plugin(slowly)], sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    children: list[int] = []

    def fork(step: int) -> None:
        if step in (3, 9):
            child = os.fork()
            if child == 0:
                run.optimizer.step()
                run.monitor.step()
                run.monitor.close()
                os._exit(0)
            children.append(child)

    run.train(workers=2, before=fork)
    run.monitor.close()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert run.losses == undisturbed
    records = records_in(tmp_path / "a.jsonl")
    steps = [record["step"] for record in records if record["kind"] == "summary"]
    assert steps == run.steps_read == sorted(set(steps))


def test_loaders_that_fork_are_no_news(undisturbed: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """Two workers of a DataLoader end in each epoch with a monitor that is not theirs: nothing is logged."""
    run = Run(mode="sync")
    run.train(workers=2)
    run.monitor.close()
    assert run.losses == undisturbed
    assert "esdmon" not in without_summary(capfd.readouterr().err)


@pytest.mark.slow
@both_modes
def test_never_closing(mode: str, tmp_path: Path) -> None:
    """The process ends by itself, with a summary, all that was read in the file, and the run folder closed."""
    script = """
        import sys, torch, esdmon
        from torch import nn
        model = nn.Sequential(nn.Linear(64, 64))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = esdmon.watch(model, optimizer, every=1, budget=None, mode=sys.argv[1], sinks=f"jsonl:{sys.argv[2]}")
        for _ in range(3):
            model(torch.ones(2, 64)).sum().backward()
            optimizer.step()
    """
    path = tmp_path / "a.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), mode, str(path)], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, without_summary(done.stderr.decode())) == (0, b"", "")
    steps = [record["step"] for record in records_in(path)]
    assert sorted(set(steps)) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "limit", "is_finished"), [(600, 0.1, False), (0.5, 60, True)])
def test_the_process_ends_though_a_reading_goes_on(seconds: float, limit: float, is_finished: bool) -> None:  # noqa: FBT001
    """A solve of ten minutes does not keep it; one of less is waited for, since its thread must not outlive Python."""
    script = f"""
        import functools, threading, time, torch, esdmon
        from torch import nn
        from esdmon.runtime.workers import at_exit
        from esdmon.spectrum import Measure

        at_exit.Limits = functools.partial(at_exit.Limits, exit_seconds={limit})
        begun = threading.Event()

        def slow(spectrum):
            begun.set()
            time.sleep({seconds})
            print("finished")
            return 1.0

        class Slow:
            @esdmon.hookimpl
            def esdmon_register_measures(self):
                return [Measure("slow", slow)]

        monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, mode="thread", sinks=None, plugins=[Slow()])
        monitor.step()
        assert begun.wait(60)
        monitor.close(0.01)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lost 1 reading of step 1, not finished in time" in done.stderr
    assert ("finished" in done.stdout) is is_finished


def test_a_process_that_is_forked_off_ends_without_waiting_for_a_reading() -> None:
    """The worker of a DataLoader, say: the thread that reads is its parent's. It would wait for an hour."""
    script = """
        import functools, threading, torch, esdmon
        from torch import nn
        from torch.utils.data import DataLoader
        from esdmon.runtime.workers import at_exit
        from esdmon.spectrum import Measure

        at_exit.Limits = functools.partial(at_exit.Limits, exit_seconds=3600)
        begun, gate = threading.Event(), threading.Event()

        class Slow:
            @esdmon.hookimpl
            def esdmon_register_measures(self):
                return [Measure("slow", lambda spectrum: begun.set() or float(gate.wait(600)))]

        options = {"budget": None, "mode": "thread", "sinks": None, "plugins": [Slow()]}
        with esdmon.watch(nn.Linear(64, 64), every=1, **options) as monitor:
            monitor.step()
            assert begun.wait(60)
            print(len(list(DataLoader(list(range(4)), num_workers=1, multiprocessing_context="fork"))))
            gate.set()
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


@pytest.mark.slow
def test_a_monitor_that_was_never_closed_does_not_hold_up_the_end() -> None:
    """Twenty readings of a minute each wait: the process ends before they do, and says what was lost."""
    script = """
        import time, torch, esdmon
        from torch import nn
        from esdmon.spectrum import Measure

        class Slow:
            @esdmon.hookimpl
            def esdmon_register_measures(self):
                return [Measure("slow", lambda spectrum: time.sleep(60) or 1.0)]

        model = nn.ModuleList([nn.Linear(64, 64) for _ in range(20)])
        monitor = esdmon.watch(model, every=1, budget=None, mode="thread", sinks=None, plugins=[Slow()])
        monitor.step()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0
    assert " of step 1, not finished in time" in done.stderr
