import logging
import re

import pytest

from esdmon.alerts import Actions, AlertBook, AlertRule, Finding, History
from esdmon.faults import Faults
from esdmon.monitor import Monitor
from esdmon.records import Alert, Report
from esdmon.schedule import every
from esdmon.sinks import MemorySink
from tests.fakes import Reads
from tests.rules import ALWAYS


class Broken:
    """A sink that raises whatever it is asked."""

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
    """One that goes on holding is not told again; a rule that raises hides no other."""
    sink, told = MemorySink(), list[Alert]()
    book = AlertBook([AlertRule("raising", raising), ALWAYS])
    monitor = Monitor(
        Reads(), schedule=every(1), sinks=[("m", sink)], book=book, actions=Actions(calls=(("on_alert", told.append),))
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
        book=AlertBook([ALWAYS]),
        actions=Actions(calls=(("on_alert", failing), ("another", told.append)), asks_to_stop=lambda _alert: 1 / 0 > 0),
    )
    monitor.step()
    assert len(monitor.alerts) == len(sink.alerts) == len(told) == 1
    assert "always: it holds" in caplog.text
    assert [fault.who for fault in monitor.errors] == ["sink broken", "on_alert", "asks_to_stop"]


@pytest.mark.parametrize("asked", [(), ("always",)], ids=["not-asked", "asked"])
def test_it_says_when_to_stop_and_to_save(asked: tuple[str, ...]) -> None:
    """Only where it was asked; a checkpoint is asked for once."""
    actions = Actions(stop_on=frozenset(asked), save_on=frozenset(asked))
    monitor = Monitor(Reads(), schedule=every(1), book=AlertBook([ALWAYS]), actions=actions)
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
    assert "closed after 1 steps without a reading: choose a smaller every=" in caplog.text


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
        ({"version": 7, "steps": 1}, "has version 4 and a number of steps, got ['steps', 'version']"),
        ({"version": 4}, "has version 4 and a number of steps"),
        ({"version": 4, "steps": -4}, "has version 4 and a number of steps"),
        (None, "has version 4 and a number of steps, got None"),
        ({"version": 4, "steps": 4}, "is damaged: KeyError: 'alerts'"),
        ({"version": 4, "steps": 4, "alerts": [{"id": "a"}], "firing": []}, "is damaged: KeyError: 'layers'"),
        ({"version": 4, "steps": 4, "alerts": [], "firing": []}, "is damaged: KeyError: 'parts'"),
    ],
    ids=str,
)
def test_what_is_no_state_is_refused(state: object, message: str) -> None:
    """With what was got; the monitor is as it was."""
    monitor = Monitor(Reads(), schedule=every(1))
    with pytest.raises(ValueError, match=re.escape(message)):
        monitor.load_state_dict(state)
    assert monitor.steps == 0


def test_a_monitor_that_was_never_stepped_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The likeliest mistake: no optimizer, and no call of step()."""
    Monitor(Reads(), schedule=every(1)).close()
    assert "closed without a step: give watch() the optimizer, or call monitor.step()" in caplog.text
