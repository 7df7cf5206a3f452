"""Limits of a reading: the budget, the queue of due steps, and the memory of copies."""

import threading

import pytest
import torch
from torch import nn

import esdmon
from esdmon.sinks import MemorySink
from tests.clocks import set_clock
from tests.limits import set_limits
from tests.runtime.workers.training import Training, slow_measure, waiting_measure


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    """And does not block: four due steps may be under way. Logged once."""
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=1, plugins=[waiting_measure(gate)()])
    run.train(12)
    gate.set()
    run.watched.close()
    assert [report.step for report in run.sink.reports] == [1, 2, 3, 4]
    assert all(len(report.new) == 3 for report in run.sink.reports)
    assert run.watched.dropped == 3 * (12 - len(run.sink.reports))
    assert caplog.text.count("because the queue is full: increase every=") == 1


def test_copies_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is always taken, however large; what there is no room for is first the next time."""
    set_limits(monkeypatch, copied_bytes=1)
    gate = threading.Event()
    run = Training(mode="thread", budget=None, every=6, plugins=[waiting_measure(gate)()])
    for _ in range(6):
        run.train(6)
        gate.set()
        run.watched.flush()
        gate.clear()
    run.watched.close()
    names = [[layer.name for layer in report.new] for report in run.sink.reports]
    assert {len(each) for each in names} == {1}
    assert {name for each in names[:3] for name in each} == {"0", "2", "4"}
    assert run.watched.dropped == 2 * 6


def test_a_budget_sweeps_a_model_and_says_how_old_its_parts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many layers a few are read at each due step, the others carry the step of their own weights."""
    set_limits(monkeypatch, advance_seconds=0.5)
    slow = slow_measure(set_clock(monkeypatch))()
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(40)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=1e-9, sinks=[sink], plugins=[slow]) as monitor:
        for _ in range(100):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    first, last = sink.reports[0], sink.reports[-1]
    assert len(first.new) == 25  # of 20 ms each, in the half second that is advanced
    assert first.waiting
    with pytest.raises(KeyError, match="was not read yet: it waits for the budget"):
        first[first.waiting[0]]
    assert "not read yet: " in str(first)
    assert last.waiting == ()
    assert [len(report.new) for report in sink.reports[-20:]] == [1] * 20
    assert 39 <= last.summary["age_max"] <= 80
    assert last.summary["age_max"] == max(layer.age for layer in last)
    assert "39 of 40 read earlier, the oldest at step" in str(last)
    assert monitor.overhead > 0


def test_what_there_was_no_room_for_is_read_later_though_it_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights, too."""
    set_limits(monkeypatch, copied_bytes=1)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)]).requires_grad_(requires_grad=False)
    with esdmon.watch(model, every=1, budget=None, mode="thread", sinks=None) as monitor:
        for _ in range(6):
            monitor.step()
            monitor.flush()
        assert monitor.report is not None
        assert monitor.report.waiting == ()


def test_what_cannot_be_read_does_not_take_the_turns_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen layers that equal the reference have nothing to read, which is seen in no time."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(20)])
    sink = MemorySink()
    slow = slow_measure(set_clock(monkeypatch))()
    with esdmon.watch(
        model, every=1, budget=1e-9, sinks=[sink], reference=model.state_dict(), plugins=[slow]
    ) as monitor:
        for _ in range(80):
            with torch.no_grad():
                for layer in list(model)[16:]:
                    layer.get_parameter("weight").add_(torch.randn(64, 64) * 0.01)
            monitor.step()
    read = [layer.name for report in sink.reports[-30:] for layer in report.new]
    assert {"16", "17", "18", "19"} <= set(read)
    assert len([name for name in read if int(name) >= 16]) > len(read) / 2


def test_a_budget_that_cannot_be_held_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One matrix at each step is more than a millionth of the run."""
    set_limits(monkeypatch, advance_seconds=1e-8)
    run = Training(mode="sync", budget=1e-6, every=1).train(30)
    run.watched.close()
    assert caplog.text.count("more than budget=1e-06. Only one matrix is read at each due step now") == 1
