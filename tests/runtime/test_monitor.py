import logging
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from esdmon.alerts import Actions, AlertManager, AlertRule, Finding, History
from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.records import Alert, Report
from esdmon.runtime.monitor import Monitor, new_run
from esdmon.schedule import every
from esdmon.schedule.budget import Budget
from esdmon.sinks import MemorySink, Sink
from esdmon.version import installed_version
from tests.fakes import Reads
from tests.rules import ALWAYS


class Broken:
    """A sink that raises in every method."""

    def write(self, report: Report) -> None:
        raise OSError(28, "No space left on device")

    def alert(self, alert: Alert) -> None:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


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


def test_a_failing_sink_is_paused_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk: the run and the other sinks go on; three failures, two lines in the log."""
    sink = MemorySink()
    monitor = Monitor(Reads(), schedule=every(1), sinks=[("jsonl:x", Broken()), ("memory", sink)])
    for _ in range(6):
        monitor.step()
    monitor.close()
    assert len(sink.reports) == 6
    (fault,) = monitor.errors
    assert (fault.who, fault.disabled) == ("sink jsonl:x", True)
    assert "No space left on device" in fault.message
    assert [record.getMessage().removeprefix("esdmon: ") for record in caplog.records] == [
        f"sink jsonl:x failed at step 1: {fault.message}. Training goes on, and it is tried again.",
        "sink jsonl:x has failed 3 times in a row and is paused for 10 due steps; see monitor.errors.",
    ]


def test_a_sink_that_closes_the_monitor_keeps_no_report_from_the_others() -> None:
    """The others are written to, and closed after that."""
    monitors: list[Monitor] = []
    calls: list[str] = []

    class Records:
        def __init__(self, name: str) -> None:
            self._name = name

        def write(self, report: Report) -> None:
            calls.append(f"{self._name} write {report.step}")
            monitors[0].close()

        def alert(self, alert: Alert) -> None:
            calls.append(f"{self._name} alert")

        def flush(self) -> None: ...

        def close(self) -> None:
            calls.append(f"{self._name} close")

    sinks = [("a", Records("a")), ("b", Records("b"))]
    monitors.append(Monitor(Reads(), schedule=every(1), sinks=sinks, alerts=AlertManager([ALWAYS])))
    for _ in range(3):
        monitors[0].step()
    assert calls == ["a write 1", "b write 1", "a alert", "b alert", "a close", "b close"]
    assert monitors[0].errors == ()


def test_strict_raises() -> None:
    """For tests and for finding a fault."""
    monitor = Monitor(Reads(), schedule=every(1), sinks=[("x", Broken())], faults=Faults(strict=True))
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
    sink, told = MemorySink(), list[Alert]()
    book = AlertManager([AlertRule("raising", raising), ALWAYS])
    monitor = Monitor(
        Reads(),
        schedule=every(1),
        sinks=[("m", sink)],
        alerts=book,
        actions=Actions(calls=(("on_alert", told.append),)),
    )
    with caplog.at_level(logging.WARNING, "esdmon"):
        for _ in range(5):
            monitor.step()
    assert [alert.id for alert in monitor.alerts] == ["always"]
    assert sink.alerts == told == list(monitor.alerts)
    assert [record.getMessage() for record in caplog.records].count("esdmon: always: it holds, at step 1.") == 1
    assert sink.reports[-1].summary["alert_always"] == 1


def test_an_action_that_fails_loses_no_alert(caplog: pytest.LogCaptureFixture) -> None:
    """Sinks, a function of the user's: each is tried, and the log has it in any case."""
    sink, told = MemorySink(), list[Alert]()

    def failing(_alert: Alert) -> None:
        raise ConnectionError("nobody answers")

    monitor = Monitor(
        Reads(),
        schedule=every(1),
        sinks=[("broken", Broken()), ("m", sink)],
        alerts=AlertManager([ALWAYS]),
        actions=Actions(calls=(("on_alert", failing), ("another", told.append)), asks_to_stop=lambda _alert: 1 / 0 > 0),
    )
    monitor.step()
    assert len(monitor.alerts) == len(sink.alerts) == len(told) == 1
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


def test_a_run_shorter_than_its_cadence_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was read, and the log says why."""
    monitor = Monitor(Reads(), schedule=every(200))
    monitor.step()
    monitor.close()
    assert "nothing was read in 1 step, since none was due: lower every=" in caplog.text


def test_a_run_that_was_broken_off_is_not_told_so(caplog: pytest.LogCaptureFixture) -> None:
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
    sink, told, states = MemorySink(), list[tuple[str, str, int]](), list[Any]()

    def save(alert: Alert) -> None:
        told.append((alert.rule, alert.state, alert.step))
        states.append(monitor.state_dict())

    book, actions = AlertManager([ALWAYS, ODD]), Actions(calls=(("save", save),))
    monitor = Monitor(Held(until=2), schedule=every(1), sinks=[("m", sink)], alerts=book, actions=actions)
    monitor.step()
    monitor.step()
    expected = [("always", "firing", 1), ("odd", "firing", 1), ("odd", "resolved", 2)]
    assert told == expected
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


class Keeps:
    """A sink of somebody else's."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def write(self, report: Report) -> None:
        self.reports.append(report)

    def alert(self, alert: Alert) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Deferring(Keeps):
    """A sink with work for later."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._pieces = pieces

    def start(self, run: str) -> None:
        self.calls.append(f"start {len(run)}")

    def write(self, report: Report) -> None:
        super().write(report)
        self.calls.append(f"write {report.step}")

    def catch_up(self) -> bool:
        self.calls.append("catch up")
        self._pieces -= 1
        return self._pieces > 0


def test_deferred_work_is_done_between_reports_a_piece_at_a_step() -> None:
    """Never in the step of a report, and not asked for when nothing is left."""
    sink = Deferring(pieces=2)
    monitor = Monitor(Reads(), schedule=every(3), sinks=[("m", sink)])
    for _ in range(9):
        monitor.step()
    first, *calls = sink.calls
    assert first == "start 8"
    assert calls == ["catch up", "catch up", "write 3", "catch up", "write 6", "catch up", "write 9"]


def test_deferred_work_is_done_where_each_step_has_a_report() -> None:
    """There is no step between them."""
    sink = Deferring(pieces=3)
    monitor = Monitor(Reads(), schedule=every(1), sinks=[("m", sink)])
    for _ in range(3):
        monitor.step()
    assert sink.calls[1:] == ["write 1", "write 2", "catch up", "write 3", "catch up"]


def test_deferred_work_waits_for_credit() -> None:
    """It is part of what watching may cost."""
    sink = Deferring(pieces=5)
    now = [0.0]
    budget = Budget(0.01, clock=lambda: now[0], cpu_clock=lambda: now[0])
    monitor = Monitor(Reads(), schedule=every(100), sinks=[("m", sink)], budget=budget)
    monitor.step()
    budget.spend(Limits().advance_seconds + 1)
    before = len(sink.calls)
    monitor.step()
    assert len(sink.calls) == before
    now[0] += 1000
    budget.earn(at_most=100)
    for _ in range(9):
        monitor.step()
    assert len(sink.calls) == before  # credit is checked ten steps after there was none
    monitor.step()
    assert sink.calls[before:] == ["catch up"]


def test_a_sink_that_was_out_for_a_while_writes_again() -> None:
    """Three failures cost the ten reports after them, and not all."""

    class Network(Keeps):
        def write(self, report: Report) -> None:
            if 6 <= report.step < 9:
                raise OSError("network is down")
            super().write(report)

    sink = Network()
    monitor = Monitor(Reads(), schedule=every(1), sinks=[("net", sink)])
    for _ in range(30):
        monitor.step()
    assert [report.step for report in sink.reports] == [*range(1, 6), *range(18, 31)]


def test_a_sink_whose_writes_fail_is_paused_though_its_other_methods_work() -> None:
    """Each write may wait for a timeout."""

    class Half(Deferring):
        tried = 0

        def write(self, report: Report) -> None:
            self.tried += 1
            raise OSError("no route")

    sink = Half(pieces=10**6)
    monitor = Monitor(Reads(), schedule=every(2), sinks=[("half", sink)])
    for _ in range(40):
        monitor.step()
        monitor.flush()
    assert sink.tried == 4
    assert [fault.disabled for fault in monitor.errors] == [True]


def test_the_run_that_is_resumed_goes_on_under_its_id() -> None:
    """Sinks get the run that writes, and from which step on."""

    class Files(Keeps):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[str | int] = []

        def start(self, run: str) -> None:
            self.told.append(run)

        def rewind(self, step: int) -> None:
            self.told.append(step)

    one, two = Files(), Files()
    first = Monitor(Reads(), schedule=every(1), sinks=[("m", one)])
    first.step()
    second = Monitor(Reads(), schedule=every(1), sinks=[("m", two)])
    second.load_state_dict(first.state_dict())
    own, run, step = two.told
    assert (run, step) == (one.told[0], 1)
    assert own != run


def test_a_run_ends_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, of a few lines: the layers by phase, alerts, and where the sinks say that one can look."""

    class Shown:
        """A sink that says where to look."""

        def write(self, report: Report) -> None: ...
        def alert(self, alert: Alert) -> None: ...
        def flush(self) -> None: ...
        def close(self) -> None: ...
        def where(self) -> str:
            return "`tensorboard --logdir runs/a`"

    sinks: list[tuple[str, Sink]] = [("a", Shown()), ("memory", MemorySink())]
    monitor = Monitor(Reads(), schedule=every(3), sinks=sinks, alerts=AlertManager([ALWAYS]))
    for _ in range(10):
        monitor.step()
    monitor.close()
    monitor.close()
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("esdmon: after 10 steps (last report: step 9), 1 layer: 1 ")
    assert others[-2].startswith("esdmon: alerts: ")
    assert others[-1] == "esdmon: look: `tensorboard --logdir runs/a`"


@pytest.mark.parametrize("steps", [0, 3])
def test_there_is_no_summary_without_readings_or_sinks(steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody looks at needs no summary, and what was not read has none."""
    monitor = Monitor(Reads(), schedule=every(3), sinks=[("memory", MemorySink())] if steps == 0 else [])
    for _ in range(steps):
        monitor.step()
    monitor.close()
    assert "after" not in capsys.readouterr().err


def test_a_summary_that_fails_is_isolated(caplog: pytest.LogCaptureFixture) -> None:
    """The sinks are closed before it."""

    class Lost(Broken):
        def write(self, report: Report) -> None: ...

        def where(self) -> str:
            raise OSError(2, "No such file")

    monitor = Monitor(Reads(), schedule=every(1), sinks=[("x", Lost())])
    monitor.step()
    monitor.close()
    assert "summary" in {fault.who for fault in monitor.errors}
    assert "No such file" in caplog.text


def test_the_name_of_a_run_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas reads the CSV's column as text: 1e234567 would be infinite."""
    drawn = iter(["12345678", "1e234567", "00000000", "12a45678"])
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(next(drawn) + "0" * 24))
    assert new_run() == "12a45678"


def test_a_schedule_that_returns_no_truth_value_is_a_fault() -> None:
    """As a tensor of two elements: nothing reaches the training loop."""
    monitor = Monitor(Reads(), schedule=lambda _step: torch.tensor([True, False]))  # type: ignore[arg-type,return-value]
    assert not monitor.step()
    assert [fault.who for fault in monitor.errors] == ["schedule"]
