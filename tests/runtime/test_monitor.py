"""The monitor: it counts steps, reads at those that are due, sends alerts, and is saved, resumed and closed."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from esdmon.alerts import Actions, AlertManager, AlertRule, Finding, History
from esdmon.isolation import Faults
from esdmon.records import Alert, Report
from esdmon.runtime.context import Context
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import every, times, union
from esdmon.sinks import MemorySink
from esdmon.version import installed_version
from tests.fakes import RaisingSink, Reads
from tests.rules import ALWAYS


def raising(_history: History) -> list[Finding]:
    raise ValueError("a rule of the user's own")


def test_reads_at_due_steps_only() -> None:
    """The schedule decides; each sink gets each report."""
    sink = MemorySink()
    monitor = Monitor(Reads(), schedule=every(3), sinks=[("memory", sink)])
    for _ in range(10):
        monitor.step()
    assert [report.step for report in sink.reports] == [3, 6, 9]
    assert monitor.report is sink.reports[-1]


class Looked(Reads):
    """Readings that count the calls between due steps."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def advance(self, *, waiting: bool = False) -> None:
        self.looks += 1


def test_between_due_steps_only_a_count_goes_up() -> None:
    """Until the due step, and from the step on at which a report is delivered; not with a function of the user's."""
    readings = Looked()
    monitor = Monitor(readings, schedule=every(100))
    for _ in range(1000):
        monitor.step()
    assert (monitor.steps, readings.looks) == (1000, 1 + 10 + 9)  # the first step, due ones, and those after them
    readings = Looked()
    monitor = Monitor(readings, schedule=lambda step: step % 100 == 0)
    for _ in range(1000):
        monitor.step()
    assert (monitor.steps, readings.looks) == (1000, 1000)


def test_several_steps_at_once_skip_no_due_one() -> None:
    """Whatever lies between."""
    sink = MemorySink()
    monitor = Monitor(Reads(), schedule=every(100), sinks=[("memory", sink)])
    assert [monitor.step(7) for _ in range(60)] == [7 * k // 100 > 7 * (k - 1) // 100 for k in range(1, 61)]
    assert [report.step for report in sink.reports] == [105, 203, 301, 406]


def test_a_run_that_goes_back_looks_at_each_step_anew() -> None:
    """What was known of the next due step holds no longer; a closed monitor counts nothing."""
    sink = MemorySink()
    monitor = Monitor(Reads(), schedule=every(100), sinks=[("memory", sink)])
    for _ in range(50):
        monitor.step()
    state = monitor.state_dict()
    for _ in range(60):
        monitor.step()
    monitor.load_state_dict(state)
    for _ in range(50):
        monitor.step()
    assert (monitor.steps, sink.reports[-1].step) == (100, 100)
    monitor.step()
    monitor.close()
    monitor.step()
    assert monitor.steps == 101


def test_strict_raises() -> None:
    """For tests and for finding a fault."""
    monitor = Monitor(
        Reads(), schedule=every(1), sinks=[("x", RaisingSink())], context=Context(faults=Faults(strict=True))
    )
    with pytest.raises(OSError, match="No space left"):
        monitor.step()


def test_a_schedule_that_raises_reaches_no_loop() -> None:
    """It is the user's own function."""

    def bad(_step: int) -> bool:
        raise ZeroDivisionError

    monitor = Monitor(Reads(), schedule=bad)
    monitor.step()
    assert [fault.who for fault in monitor.errors] == ["schedule"]


def test_alerts_go_to_the_log_the_sinks_and_who_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    """One that goes on holding is not announced again; a rule that raises hides no other."""
    sink, seen = MemorySink(), list[Alert]()
    book = AlertManager([AlertRule("raising", raising), ALWAYS])
    monitor = Monitor(
        Reads(),
        schedule=every(1),
        sinks=[("m", sink)],
        alerts=book,
        actions=Actions(calls=(("on_alert", seen.append),)),
    )
    with caplog.at_level(logging.WARNING, "esdmon"):
        for _ in range(5):
            monitor.step()
    assert [alert.id for alert in monitor.alerts] == ["always"]
    assert sink.alerts == seen == list(monitor.alerts)
    assert [record.getMessage() for record in caplog.records].count("esdmon: always: it holds, at step 1.") == 1
    assert sink.reports[-1].summary["alert_always"] == 1


def test_an_action_that_fails_loses_no_alert(caplog: pytest.LogCaptureFixture) -> None:
    """Sinks, a function of the user's: each is tried, and the log has it in any case."""
    sink, seen = MemorySink(), list[Alert]()

    def failing(_alert: Alert) -> None:
        raise ConnectionError("nobody answers")

    monitor = Monitor(
        Reads(),
        schedule=every(1),
        sinks=[("broken", RaisingSink()), ("m", sink)],
        alerts=AlertManager([ALWAYS]),
        actions=Actions(calls=(("on_alert", failing), ("another", seen.append)), asks_to_stop=lambda _alert: 1 / 0 > 0),
    )
    monitor.step()
    assert len(monitor.alerts) == len(sink.alerts) == len(seen) == 1
    assert "always: it holds" in caplog.text
    assert [fault.who for fault in monitor.errors] == ["sink broken", "on_alert", "asks_to_stop"]
    monitor.close()  # else its sink fails when it is collected, in the log of another test


@pytest.mark.parametrize("asked", [(), ("always",)], ids=["not-asked", "asked"])
def test_it_says_when_to_stop_and_to_save(asked: tuple[str, ...]) -> None:
    """Only with `stop_on`; a checkpoint is requested once."""
    actions = Actions(stop_on=frozenset(asked), save_on=frozenset(asked))
    monitor = Monitor(Reads(), schedule=every(1), alerts=AlertManager([ALWAYS]), actions=actions)
    assert not monitor.should_stop
    monitor.step()
    monitor.step()
    assert monitor.should_stop == bool(asked)
    assert [monitor.take_save_request() for _ in range(2)] == [bool(asked), False]


def test_close_is_final_and_harmless_twice() -> None:
    """Hooks are taken back in reverse order, once; a step after it does nothing."""
    undone: list[int] = []
    monitor = Monitor(Reads(), schedule=every(1))
    monitor.at_close(lambda: undone.append(1))
    monitor.at_close(lambda: undone.append(2))
    with monitor:
        monitor.step()
    monitor.close()
    monitor.step()
    assert (undone, monitor.steps) == ([2, 1], 1)


def test_an_exception_in_the_loop_closes_and_passes() -> None:
    """The user's error is the user's."""
    sink = MemorySink()

    def loop() -> None:
        with Monitor(Reads(), schedule=every(1), sinks=[("m", sink)]) as monitor:
            monitor.step()
            message = "the user's own"
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="the user's own"):
        loop()
    assert len(sink.reports) == 1


def test_a_run_shorter_than_its_cadence_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was read, and the log says why."""
    monitor = Monitor(Reads(), schedule=every(200))
    monitor.step()
    monitor.close()
    assert "nothing was read in 1 step, since none was due: lower every=" in caplog.text


def test_a_run_that_was_broken_off_is_not_logged_as_too_short(caplog: pytest.LogCaptureFixture) -> None:
    """Its length says nothing about `every`."""

    def loop() -> None:
        with Monitor(Reads(), schedule=every(200)) as monitor:
            monitor.step()
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        loop()
    assert "nothing was read" not in caplog.text


def test_a_resumed_run_goes_on_counting() -> None:
    """The cadence of the first run goes on in the second."""
    first = Monitor(Reads(), schedule=every(4))
    for _ in range(6):
        first.step()
    sink = MemorySink()
    second = Monitor(Reads(), schedule=every(4), sinks=[("m", sink)])
    second.load_state_dict(first.state_dict())
    second.step()
    second.step()
    assert [report.step for report in sink.reports] == [8]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"version": 7}, "has version 7, written by another version of esdmon; esdmon {ours} reads version 4. Install"),
        (
            {"version": 5, "esdmon": "9.1"},
            "written by esdmon 9.1; esdmon {ours} reads version 4. Install esdmon 9.1, or",
        ),
        ({"version": 4}, "cannot be read: KeyError: 'parts'. It was written by another version of esdmon"),
        (
            {"version": 4, "esdmon": "9.1", "steps": -4, "parts": {}},
            "the number of steps is -4. It was written by esdmon 9.1, and this is esdmon {ours}. Install esdmon 9.1",
        ),
        (None, "has a version and a number of steps, got None"),
        ({"steps": 1}, "has a version and a number of steps, got ['steps']"),
        ({"version": 4, "steps": 4, "parts": {}}, "cannot be read: KeyError: 'alerts'"),
        ({"version": 4, "steps": 4, "alerts": [{"id": "a"}], "parts": {}}, "cannot be read: KeyError: 'severity'"),
        (
            {"version": 4, "steps": 4, "alerts": [{"severity": "dire"}], "parts": {}},
            "cannot be read: ValueError: the severity 'dire' is unknown",
        ),
    ],
    ids=str,
)
def test_what_is_no_state_is_refused(state: object, message: str) -> None:
    """With what was got; the monitor is as it was."""
    monitor = Monitor(Reads(), schedule=every(1))
    with pytest.raises(ValueError, match=re.escape(message.replace("{ours}", installed_version()))):
        monitor.load_state_dict(state)
    assert monitor.steps == 0


def test_a_monitor_that_was_never_stepped_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The likeliest mistake: no optimizer, and no call of step()."""
    Monitor(Reads(), schedule=every(1)).close()
    assert (
        "nothing was read, since no step was counted: give watch() the optimizer, or call monitor.step(). If a host"
        in caplog.text
    )


class Held(Reads):
    """Readings that stay under way until the steps of several due steps are complete."""

    def __init__(self, *, until: int) -> None:
        super().__init__()
        self._until = until

    def finished(self) -> Iterator[Report]:
        if len(self._complete) >= self._until:
            yield from super().finished()


def _odd(history: History) -> list[Finding]:
    return [Finding("", "odd")] if history.report.step % 2 else []


ODD = AlertRule("odd", _odd, checks=1, clear=1, counts="reports")


def test_an_action_that_saves_a_checkpoint_keeps_the_order() -> None:
    """Two reports come at once; the first alert's action asks for the state, and so comes back into the monitor."""
    sink, seen, states = MemorySink(), list[tuple[str, str, int]](), list[Any]()

    def save(alert: Alert) -> None:
        seen.append((alert.rule, alert.state, alert.step))
        states.append(monitor.state_dict())

    book, actions = AlertManager([ALWAYS, ODD]), Actions(calls=(("save", save),))
    monitor = Monitor(Held(until=2), schedule=every(1), sinks=[("m", sink)], alerts=book, actions=actions)
    monitor.step()
    monitor.step()
    expected = [("always", "firing", 1), ("odd", "firing", 1), ("odd", "resolved", 2)]
    assert seen == expected
    assert [(alert.rule, alert.state, alert.step) for alert in sink.alerts] == expected
    assert [report.step for report in sink.reports] == [1, 2]
    # Both alerts of the first report are in the state that is saved on the first of them: a resumed run repeats none.
    assert [alert["rule"] for alert in states[0]["alerts"]] == ["always", "odd"]
    assert monitor.errors == ()


def test_a_damaged_state_changes_no_part() -> None:
    """The readings in it are whole, the alerts are not."""
    first = Monitor(Reads(), schedule=every(1), alerts=AlertManager([ALWAYS]))
    first.step()
    state = first.state_dict()
    del state["parts"]["alerts"]["cases"]
    readings = Reads()
    second = Monitor(readings, schedule=every(1), alerts=AlertManager([ALWAYS]))
    taken: list[bool] = []
    readings.prepare = lambda _state: lambda: taken.append(True)  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="cannot be read: KeyError: 'cases'"):
        second.load_state_dict(state)
    assert (taken, second.steps, second.alerts) == ([], 0, ())


def test_a_schedule_that_returns_no_truth_value_is_a_fault() -> None:
    """As a tensor of two elements: nothing reaches the training loop."""
    monitor = Monitor(Reads(), schedule=lambda _step: torch.tensor([True, False]))  # type: ignore[arg-type,return-value]
    assert not monitor.step()
    assert [fault.who for fault in monitor.errors] == ["schedule"]


def test_many_steps_at_once_take_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host counts tokens, or a run is resumed, these may be millions: each was asked for."""
    asked, at = list[int](), times._At.__call__

    def counted(schedule: times._At, step: int) -> bool:
        asked.append(step)
        return at(schedule, step)

    monkeypatch.setattr(times._At, "__call__", counted)
    monitor = Monitor(Reads(), schedule=union(times.at(7, 30_000, 50_000), times.at(60_000)))
    asked.clear()
    assert [monitor.step(10_000) for _ in range(6)] == [True, False, True, False, True, True]
    assert len(asked) < 20
