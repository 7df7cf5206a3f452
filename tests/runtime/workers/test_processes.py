"""Readings that are finished by worker processes: real ones, of trainings in this process."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import LayerReport
from esdmon.runtime.workers import worker as worker_module
from esdmon.runtime.workers.job import run
from esdmon.runtime.workers.measured import measure
from esdmon.runtime.workers.processes import Processes
from esdmon.schedule.workers import Workers
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.runtime.workers.training import Training
from tests.runtime.workers.worker_processes import LONG, Pids, training

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="worker processes need Linux"),
    pytest.mark.usefixtures("pids"),
]


def computed(layer: LayerReport) -> list[str]:
    """What was computed of the spectrum, to the last bit; without what only a watched run has."""
    measures = {name: value for name, value in layer.measures.items() if name != "spectral_distance"}
    phase = (layer.phase, layer.phase_confidence, layer.explanation, layer.alpha_is_meaningful, layer.over_regularized)
    return [repr(each) for each in (measures, layer.nulls, phase, layer.esd, layer.spectral_shape, layer.precision)]


def trained(dtype: torch.dtype) -> tuple[nn.Module, list[LayerReport]]:
    """A small network after six steps, and its last readings by a monitor."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 96))
    model = nn.Sequential(*layers).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=3, mode="process", budget=None, sinks=[sink], alerts=None) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            (model(torch.randn(8, 3, 8, 8, dtype=dtype)) - 1).square().mean().backward()
            optimizer.step()
    assert monitor.errors == ()
    last = sink.reports[-1]
    assert (last.step, len(last.new)) == (6, 3)
    return model, list(last)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(each, marks=pytest.mark.slow) for each in (torch.float64, torch.bfloat16))],
    ids=str,
)
def test_a_process_reads_what_a_thread_would_with_its_solver(
    dtype: torch.dtype, pids: Pids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, of a real training; and `analyze()` reads the same, as exactly as two sums agree."""
    model, there = trained(dtype)
    assert len(pids.started) == 1
    monkeypatch.setattr(Processes, "run", lambda _, job, stack: run(job, np.ascontiguousarray(stack)))
    _, here = trained(dtype)
    assert len(pids.started) == 1
    assert [computed(layer) for layer in there] == [computed(layer) for layer in here]
    for layer, once in zip(there, esdmon.analyze(model), strict=True):
        assert (layer.phase, layer.precision, layer.dtype) == (once.phase, once.precision, once.dtype)
        for name, value in once.measures.items():
            assert layer.measures[name] == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True), name


def test_a_process_reads_what_a_thread_reads() -> None:
    """As exactly as two solvers agree: alpha to 1e-4, and the same phases; also what is computed on request."""
    runs = {}
    for mode in ("thread", "process"):
        run = Training(mode=mode, budget=None, every=5, measures="all").train(5)
        run.watched.close()
        assert run.watched.errors == ()
        runs[mode] = run.sink.reports[0]
    for ours, theirs in zip(runs["process"], runs["thread"], strict=True):
        assert (ours.name, ours.phase, ours.update_ratio) == (theirs.name, theirs.phase, theirs.update_ratio)
        assert list(ours.measures) == list(theirs.measures)
        for name, value in theirs.measures.items():
            assert ours.measures[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_training_is_the_same_to_the_last_bit() -> None:
    threads = set(threading.enumerate())
    watched = training(budget=0.5).train(20)
    watched.watched.close()
    alone = Training().train(20)
    assert watched.losses == alone.losses
    assert all(torch.equal(a, b) for a, b in zip(watched.state()[:-1], alone.state()[:-1], strict=True))
    assert watched.sink.reports
    for thread in set(threading.enumerate()) - threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_the_process_has_no_torch_and_the_lowest_priority(pids: Pids) -> None:
    run = training(measures="all").train(1)
    run.watched.flush(LONG)
    maps = Path(f"/proc/{pids.last}/maps").read_text(encoding="utf-8")
    assert "numpy" in maps
    assert "torch" not in maps
    assert os.sched_getscheduler(pids.last) == os.SCHED_IDLE or os.getpriority(os.PRIO_PROCESS, pids.last) == 19
    assert os.getpgid(pids.last) != os.getpgid(0)  # Ctrl-C is for the training
    run.watched.close()


def test_measures_of_plugins_are_computed_here() -> None:
    """Of the spectrum that comes back: their code may need the script that trains."""

    class Plugin:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("of_mine", lambda spectrum: os.getpid() + 0 * spectrum.lambda_max)]

    run = training(plugins=[Plugin()]).train(1)
    run.watched.close()
    assert {layer.measures["of_mine"] for layer in run.sink.reports[0]} == {os.getpid()}


@pytest.mark.slow
def test_several_processes_read_what_one_does(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    """On idle cores, each thread with a process of its own."""
    one = training(budget=0.9, every=3).train(3)
    one.watched.close()
    assert len(pids.started) == 1
    monkeypatch.setattr(Workers, "count", 3)
    three = training(budget=0.9, every=3).train(3)
    three.watched.close()
    assert len(pids.started) == 4
    first, second = one.sink.reports[0], three.sink.reports[0]
    assert [computed(layer) for layer in first] == [computed(layer) for layer in second]
    assert len(second.new) == 3


def test_what_cannot_be_read_has_its_status() -> None:
    """As in a thread: nothing has failed."""
    layers = [nn.Linear(64, 64) for _ in range(3)]
    with torch.no_grad():
        layers[0].weight[3, 4] = float("nan")
        layers[1].weight.zero_()
    model = nn.Sequential(*layers)
    sink = MemorySink()
    with esdmon.watch(model, every=1, mode="process", budget=None, sinks=[sink], alerts=None) as monitor:
        monitor.step()
    assert monitor.errors == ()
    assert [(layer.status, layer.reason) for layer in sink.reports[0]] == [
        ("nonfinite", "1 of 4096 elements are NaN or infinite"),
        ("degenerate", "all weights are zero"),
        ("ok", ""),
    ]


def test_a_measure_that_fails_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so computed here, where its failure is counted as any other."""

    def broken(_spectrum: Spectrum) -> float:
        raise ZeroDivisionError("in a measure")

    several = (Measure("first", lambda _: 1.0, null=broken), Measure("second", broken, null=lambda _: 2.0))
    monkeypatch.setattr("esdmon.runtime.workers.measured.BUILT_IN_MEASURES", several)
    spectrum = Spectrum.from_eigenvalues([1.0, 2.0, 3.0], shape=(3, 3))
    assert measure(spectrum, ["first", "second", "third"]).values == {
        ("first", "weight"): 1.0,
        ("second", "noise"): 2.0,
    }


def test_a_process_that_was_killed_is_started_again_once(pids: Pids, caplog: pytest.LogCaptureFixture) -> None:
    """Its reading has failed; after the second, threads read. Nothing is raised."""
    run = training(every=10, alerts=None).train(10)
    run.watched.flush(LONG)
    for _ in range(2):
        os.kill(pids.last, signal.SIGKILL)
        run.train(10)
        run.watched.flush(LONG)
    run.watched.close()
    failed = [layer for report in run.sink.reports for layer in report.new if layer.status == "failed"]
    assert [layer.step for layer in failed] == [20, 30]
    assert {layer.reason for layer in failed} == {
        "WorkerError: the worker process that read it was ended by signal 9, perhaps by the kernel for want of memory"
    }
    assert len(pids.started) == 2
    assert caplog.text.count("worker processes have ended 2 times") == 1
    assert [len(report.new) for report in run.sink.reports] == [3, 3, 3]


@pytest.mark.parametrize("executable", [sys.executable, "/bin/false", "/no/such/file"])
def test_where_no_process_can_be_started_threads_read(
    executable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; nothing is lost. The first is a Python that does not find the module."""
    if executable == sys.executable:
        monkeypatch.setattr(worker_module, "_PROGRAM", "esdmon.no_such_module")
    monkeypatch.setattr(sys, "executable", executable)
    run = training(every=5).train(10)
    run.watched.close()
    assert [len(report.new) for report in run.sink.reports] == [3, 3]
    assert all(layer.status == "ok" for report in run.sink.reports for layer in report)
    assert run.watched.errors == ()
    assert caplog.text.count("worker processes cannot be started") == 1


@pytest.mark.parametrize(
    ("lacking", "why"), [("memory", "no memory that only two"), ("python", "no Python interpreter")]
)
def test_where_processes_cannot_be_had_threads_read(
    lacking: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if lacking == "memory":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    run = training().train(1)
    assert caplog.text.count(why) == 1
    run.watched.close()
    assert len(run.sink.reports[0].new) == 3


def test_a_run_that_is_resumed_goes_on() -> None:
    """From a state that was taken while a process reads: as one in whose state the reading is not."""
    first = training(every=2).train(3)
    first.watched.flush(LONG)
    first.train(1)
    state = first.watched.state_dict()
    first.watched.flush(LONG)
    second = training(every=2)
    second.model.load_state_dict(first.model.state_dict())
    second.watched.load_state_dict(state)
    second.train(2)
    second.watched.close()
    first.watched.close()
    assert [(report.step, len(report.new)) for report in second.sink.reports] == [(6, 3)]


def test_what_a_process_computes_is_charged_in_its_cpu_time() -> None:
    """And not in the time that its thread waits."""

    class Counting:
        cpu_seconds = 5.0

        def run(self, _job: object, _stack: object) -> Any:
            time.sleep(0.01)
            return type("Outcome", (), {"cpu_seconds": self.cpu_seconds + 1000.0})

        def close(self) -> None:
            pass

    started: Any = Counting
    pool = Processes(started)
    before = pool.clock()
    job: Any = None
    pool.run(job, np.zeros((1, 1, 1)))
    assert pool.clock() - before >= 1000.0
    assert pool.clock() - before - 1000.0 < time.perf_counter() - before
    pool.close()


def test_no_memory_for_the_arrays_is_a_failed_reading(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is there for the next."""
    run = training(every=5).train(5)
    run.watched.flush(LONG)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "posix_fallocate", full)
        run.train(5)
        run.watched.flush(LONG)
    run.train(5)
    run.watched.close()
    assert [layer.status for layer in run.sink.reports[1]] == ["failed"] * 3
    assert [layer.status for layer in run.sink.reports[2]] == ["ok"] * 3
    assert len(pids.started) == 1
