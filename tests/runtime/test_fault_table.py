"""What can go wrong beside a training: it ends as it would have ended, nothing hangs, and what was lost is logged."""

import ctypes
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import esdmon
from esdmon.alerts import AlertRule
from esdmon.records import Alert, Report
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.summaries import without_summary

STEPS = 24


class Noise(Dataset[torch.Tensor]):
    """The same numbers in each process."""

    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.randn(64, generator=torch.Generator().manual_seed(k))


class Run:
    """A training of a few steps that is watched, and its log."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sink = MemorySink()
        self.losses: list[float] = []
        if options:
            sinks = [self.sink, *options.pop("sinks", ())]
            given: dict[str, Any] = {"every": 2, "budget": None, "sinks": sinks} | options
            self.monitor = esdmon.watch(self.model, self.optimizer, **given)

    def train(self, *, workers: int = 0, before: Callable[[int], None] = lambda _step: None) -> None:
        loader = DataLoader(Noise(), batch_size=8, num_workers=workers)
        for step, batch in enumerate(loader, start=1):
            before(step)
            loss = (self.model(batch) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    @property
    def steps_read(self) -> list[int]:
        return [report.step for report in self.sink.reports]

    @property
    def who_failed(self) -> list[str]:
        return [fault.who for fault in self.monitor.errors]


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    """The losses of the same training that nobody watches."""
    run = Run()
    run.train()
    return run.losses


both_modes = pytest.mark.parametrize("mode", ["sync", "thread"])


@dataclass
class Raising:
    """A sink whose methods raise a given exception."""

    error: Exception

    def write(self, report: Report) -> None:
        raise self.error

    def alert(self, alert: Alert) -> None:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def close(self) -> None:
        raise self.error


class Plugin:
    """One measure."""

    def __init__(self, compute: Callable[[Spectrum], float]) -> None:
        self._compute = compute

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> Iterable[Measure]:
        return [Measure("of_the_plugin", self._compute)]


def slowly(_spectrum: Spectrum) -> float:
    time.sleep(0.05)
    return 1.0


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How often the log says it."""
    return sum(words in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@both_modes
def test_a_sink_that_raises(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """The others get all; three lines are too many, so two."""
    run = Run(mode=mode, sinks=[Raising(ConnectionError("no route"))])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert len(run.steps_read) >= 4
    assert run.who_failed == ["sink Raising"]
    assert told(caplog, "sink Raising failed at step") == 1
    assert told(caplog, "sink Raising has failed 3 times in a row and is paused for 10 due steps") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@both_modes
def test_a_full_disk(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """The device on which there is never room."""
    run = Run(mode=mode, sinks=["jsonl:/dev/full"])
    run.train()
    with caplog.at_level(logging.INFO, "esdmon"):
        run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["sink jsonl:/dev/full"]
    assert told(caplog, "No space left on device") == 1
    assert re.search(r"jsonl:/dev/full has only 0 of 1[12] readings, since it failed: the first that", caplog.text)
    assert "esdmon report /dev/full" not in caplog.text


def test_a_disk_that_is_full_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the run says how many readings are missing in a sink, and since when; the others have all."""

    class Full:
        def write(self, report: Report) -> None:
            if 6 < report.step < 12:
                raise OSError(28, "No space left on device")

        def alert(self, alert: Alert) -> None: ...

        def flush(self) -> None: ...

        def close(self) -> None: ...

        def where(self) -> str:
            return "`look here`"

    run = Run(mode="sync", sinks=[Full()])
    run.train()
    with caplog.at_level(logging.INFO, "esdmon"):
        run.monitor.close()
    assert len(run.steps_read) == 12
    assert "Full has only 10 of 12 readings, since it failed: the first that it lacks is of step 8." in caplog.text
    assert "look: `look here`" in caplog.text


def test_a_folder_that_is_deleted(tmp_path: Path, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """A new file is started, and the loss of the old one is logged."""
    path = tmp_path / "runs" / "esdmon.jsonl"
    run = Run(mode="sync", sinks=[f"jsonl:{path}"])

    def tidy(step: int) -> None:
        if step == 7:
            path.unlink()
            path.parent.rmdir()

    run.train(before=tidy)
    run.monitor.close()
    assert run.losses == undisturbed
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(8, STEPS + 1, 2))
    assert told(caplog, "was deleted, and its content is lost") == 1


@both_modes
def test_weights_that_are_nan(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """The training goes on with them, as it would have."""
    runs = [Run(mode=mode), Run()]
    for run in runs:

        def spoil(step: int, run: Run = run) -> None:
            if step == 5:
                with torch.no_grad():
                    run.model.get_parameter("2.weight")[0, 0] = math.nan

        run.train(before=spoil)
    runs[0].monitor.close()
    watched, plain = (torch.tensor(run.losses) for run in runs)
    assert torch.equal(watched.nan_to_num(-1.0), plain.nan_to_num(-1.0))
    assert runs[0].monitor.errors == ()
    assert [alert.layers for alert in runs[0].monitor.alerts if alert.rule == "non_finite"] == [("0", "2")]
    assert runs[0].sink.reports[-1]["2"].status == "nonfinite"
    assert told(caplog, "NaN or infinite") == 1


@both_modes
def test_a_measure_that_raises(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """It is undefined; the others have their numbers."""

    def bad(_spectrum: Spectrum) -> float:
        raise ZeroDivisionError("in the plugin")

    run = Run(mode=mode, plugins=[Plugin(bad)])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["measure of_the_plugin (plugin 'Plugin', esdmon_register_measures)"]
    layer = run.sink.reports[-1]["0"]
    assert math.isnan(layer.measures["of_the_plugin"])
    assert layer.measures["alpha"] > 1
    assert told(caplog, "in the plugin") == 1


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


def test_a_full_queue(undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Readings are left out and counted; the loop waits for none."""
    gate = threading.Event()
    run = Run(mode="thread", every=1, plugins=[Plugin(lambda _spectrum: float(gate.wait(60)))])
    run.train()
    gate.set()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.steps_read == [1, 2, 3, 4]
    assert run.monitor.dropped == 2 * (STEPS - 4)
    assert told(caplog, "because the queue is full") == 1


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
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "summary"]
    assert steps == run.steps_read == sorted(set(steps))


def test_loaders_that_fork_are_no_news(undisturbed: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """Two workers of a DataLoader end in each epoch with a monitor that is not theirs: nothing is logged."""
    run = Run(mode="sync")
    run.train(workers=2)
    run.monitor.close()
    assert run.losses == undisturbed
    assert "esdmon" not in without_summary(capfd.readouterr().err)


@both_modes
@pytest.mark.parametrize("error", [RuntimeError("the user's own"), KeyboardInterrupt("the user's own")], ids=repr)
def test_an_exception_in_the_loop(mode: str, error: BaseException, undisturbed: list[float]) -> None:
    """It passes; what was read is written, what was opened is closed."""
    run = Run(mode=mode)

    def fail(step: int) -> None:
        if step == 7:
            raise error

    def loop() -> None:
        with run.monitor:
            run.train(before=fail)

    with pytest.raises(type(error), match="the user's own"):
        loop()
    assert run.losses == undisturbed[:6]
    assert run.steps_read[0] == 2
    assert run.steps_read[-1] == 6
    assert not run.optimizer._optimizer_step_post_hooks


def test_an_interrupt_in_the_midst_of_a_reading(undisturbed: list[float]) -> None:
    """Ctrl-C is the user's: it stops the loop there, and a loop that goes on is watched on."""
    interrupted: list[bool] = []

    def interrupt(_spectrum: Spectrum) -> float:
        if not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)
        return 1.0

    run = Run(mode="sync", plugins=[Plugin(interrupt)])

    # A process that a shell started in the background ignores the signal, and Python leaves that so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^$"):  # as Python raises it for a signal
            run.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(run.losses) == 1
    assert undisturbed[:1] == run.losses
    run.optimizer.step()
    run.optimizer.step()
    run.monitor.close()
    assert run.steps_read[-1] == 4


@both_modes
def test_closing_twice(mode: str, undisturbed: list[float]) -> None:
    """Once is enough, and a second time does nothing; nor does a step after it."""
    run = Run(mode=mode)
    run.train()
    run.monitor.close()
    read = run.steps_read
    run.monitor.close()
    run.monitor.step()
    run.monitor.flush()
    assert run.losses == undisturbed
    assert run.steps_read == read


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
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3]


@both_modes
def test_resuming_from_an_older_step(mode: str, tmp_path: Path) -> None:
    """What the first run wrote after its checkpoint is gone from the file, and is written again."""
    path = tmp_path / "a.jsonl"
    states: list[dict[str, Any]] = []
    first = Run(mode=mode, sinks=[f"jsonl:{path}"])
    first.train(before=lambda step: states.append(first.monitor.state_dict()) if step == 6 else None)
    first.monitor.close()
    second = Run(mode=mode, sinks=[f"jsonl:{path}"])
    second.monitor.load_state_dict(states[0])
    second.train(before=lambda _step: second.monitor.flush())  # a short run on a busy machine drops none
    second.monitor.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "summary"]
    assert steps == sorted(set(steps))
    assert steps[:2] == [2, 4]
    assert steps[-1] > STEPS
    assert steps[2:] == second.steps_read


@both_modes
def test_a_model_whose_layer_is_replaced(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """The new one is read under its name, and what the old one was is not compared with it."""
    runs = [Run(mode=mode), Run()]
    for run in runs:

        def replace(step: int, run: Run = run) -> None:
            if step == 6:
                torch.manual_seed(1)
                run.model[2] = nn.Linear(80, 64)
                run.optimizer.add_param_group({"params": list(run.model[2].parameters())})

        run.train(before=replace)
    runs[0].monitor.close()
    assert runs[0].losses == runs[1].losses
    assert told(caplog, "the parameters of the model have changed") == 1
    last = runs[0].sink.reports[-1]["2"]
    norm = float(runs[0].model.get_parameter("2.weight").detach().norm())
    assert last.measures["frobenius_norm"] == pytest.approx(norm, rel=0.2)
    assert last.in_optimizer


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


def test_a_rule_that_gives_something_else_is_the_rules_fault(undisturbed: list[float]) -> None:
    """And no other's."""
    rule = AlertRule("bad", lambda _history: ["it is bad"])  # type: ignore[list-item]
    run = Run(mode="sync", alerts=["default", rule])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["rule bad"]
    assert "a rule must return Finding objects; got 'it is bad'" in run.monitor.errors[0].message
    assert len(run.steps_read) == STEPS / 2


def test_a_schedule_that_raises_now_and_then_is_asked_again(undisturbed: list[float]) -> None:
    """What is due and fails is not forgiven by the steps that are not due."""

    def schedule(step: int) -> bool:
        if step in (3, 9):
            raise KeyError(step)
        return step % 2 == 0

    run = Run(mode="sync", every=schedule)
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.steps_read == list(range(2, STEPS + 1, 2))
    assert [(fault.who, fault.count) for fault in run.monitor.errors] == [("schedule", 2)]


def test_a_reading_that_fails_at_every_due_step_is_shut_off(
    undisturbed: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After three due steps, whatever lies between them."""
    run = Run(mode="sync", every=3)

    def broken(*_arguments: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(run.monitor._readings, "begin", broken)
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert [(fault.who, fault.count, fault.disabled) for fault in run.monitor.errors] == [("monitor", 3, True)]
    assert told(caplog, "monitor has failed 3 times in a row and is paused for 10 due steps") == 1
