"""Several threads that read one model at once, on cores that are idle."""

import gc
import threading
import weakref
from contextlib import suppress

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import Report
from esdmon.schedule.workers import Workers
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.limits import set_limits


class Meets:
    """A plugin whose measure waits until so many readings are under way at once."""

    def __init__(self, readings: int) -> None:
        self._barrier = threading.Barrier(readings)
        self.met = 0

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> list[Measure]:
        return [Measure("meets", self._meet)]

    def _meet(self, _spectrum: Spectrum) -> float:
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(20)
            self.met += 1
        return 1.0


def read(meets: Meets, **options: object) -> Report:
    """Return what a run reads at its first due step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 80), nn.Linear(80, 64))
    sink = MemorySink()
    with esdmon.watch(model, every=2, mode="thread", budget=0.9, sinks=[sink], plugins=[meets], **options) as monitor:  # type: ignore[arg-type]
        monitor.step()
        monitor.step()
    assert monitor.errors == ()
    return sink.reports[0]


def test_several_threads_read_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in the order of the model."""
    alone = read(Meets(1))
    monkeypatch.setattr(Workers, "count", 3)
    together = Meets(3)
    report = read(together)
    assert together.met == 3
    assert [(layer.name, layer.phase, layer.measures) for layer in report] == [
        (layer.name, layer.phase, layer.measures) for layer in alone
    ]


def test_without_workers_one_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "count", 3)
    meets = Meets(1)
    assert len(read(meets, workers=0)) == 3
    assert meets.met == 3


@pytest.mark.parametrize("workers", [-1, "all", 1.5, None, True])
def test_workers_that_cannot_be_used_are_refused(workers: object) -> None:
    with pytest.raises(
        ValueError, match=r"workers= must be 'auto', or a number of threads or worker processes, 0 or more; got"
    ):
        esdmon.watch(nn.Linear(64, 64), sinks=None, workers=workers)  # type: ignore[arg-type]


def test_what_finds_no_memory_is_read_at_the_steps_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """On idle cores, where a model is larger than the copies that may wait; nothing is dropped."""
    monkeypatch.setattr(Workers, "count", 1)
    set_limits(monkeypatch, copied_bytes=1)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    sink = MemorySink()
    with esdmon.watch(model, every=10, mode="thread", budget=0.9, sinks=[sink], alerts=None) as monitor:
        for _ in range(25):
            monitor.step()
            monitor.flush()
    steps = [(report.step, report.extra, [layer.name for layer in report.new]) for report in sink.reports]
    first = [step for step, _, _ in steps if step < 20]
    assert first == [10, 11, 12, 13, 14]
    assert [extra for _, extra, _ in steps[:5]] == [False, True, True, True, True]
    assert sorted(name for _, _, names in steps[:5] for name in names) == ["0", "1", "2", "3", "4"]
    assert monitor.dropped == 0


def test_a_restored_run_reads_as_one_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What found no memory before the state was loaded waits for the next scheduled step."""
    monkeypatch.setattr(Workers, "count", 1)
    set_limits(monkeypatch, copied_bytes=1)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    sink = MemorySink()
    with esdmon.watch(model, every=5, mode="thread", budget=0.9, sinks=[sink], alerts=None) as monitor:
        for _ in range(7):
            monitor.step()
            monitor.flush()
            if monitor.steps == 5:
                monitor.load_state_dict(monitor.state_dict())
    assert [report.step for report in sink.reports] == [5]


@pytest.mark.parametrize("workers", ["auto", 0])
def test_a_monitor_that_nobody_holds_leaves_neither_model_nor_thread(workers: str | int) -> None:
    """As in a notebook, where a cell that trains runs again and again."""
    others = set(threading.enumerate())  # of tests before
    model = nn.Linear(64, 64)
    monitor = esdmon.watch(model, every=1, mode="thread", budget=0.9, sinks=None, alerts=None, workers=workers)
    monitor.step()
    monitor.flush()
    threads = set(threading.enumerate()) - others
    assert threads
    gone = weakref.ref(model)
    del model, monitor
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
