"""Delivery of reports: sinks that fail or defer work, and the summary at the end of a run."""

import pytest

from esdmon.alerts import AlertManager
from esdmon.limits import Limits
from esdmon.records import Alert, Report
from esdmon.runtime.context import Context
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import every
from esdmon.schedule.budget import Budget
from esdmon.sinks import MemorySink, Sink
from tests.fakes import RaisingSink, Reads
from tests.rules import ALWAYS


def test_a_failing_sink_is_paused_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk: the run and the other sinks go on; three failures, two lines in the log."""
    sink = MemorySink()
    monitor = Monitor(Reads(), schedule=every(1), sinks=[("jsonl:x", RaisingSink()), ("memory", sink)])
    for _ in range(6):
        monitor.step()
    monitor.close()
    assert len(sink.reports) == 6
    (fault,) = monitor.errors
    assert (fault.who, fault.disabled) == ("sink jsonl:x", True)
    assert "No space left on device" in fault.message
    assert [record.getMessage().removeprefix("esdmon: ") for record in caplog.records] == [
        f"sink jsonl:x failed at step 1: {fault.message}. Training continues, and this part is tried again.",
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
    monitor = Monitor(Reads(), schedule=every(100), sinks=[("m", sink)], context=Context(budget=budget))
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
            self.seen: list[str | int] = []

        def start(self, run: str) -> None:
            self.seen.append(run)

        def rewind(self, step: int) -> None:
            self.seen.append(step)

    one, two = Files(), Files()
    first = Monitor(Reads(), schedule=every(1), sinks=[("m", one)])
    first.step()
    second = Monitor(Reads(), schedule=every(1), sinks=[("m", two)])
    second.load_state_dict(first.state_dict())
    own, run, step = two.seen
    assert (run, step) == (one.seen[0], 1)
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

    class Lost(RaisingSink):
        def write(self, report: Report) -> None: ...

        def where(self) -> str:
            raise OSError(2, "No such file")

    monitor = Monitor(Reads(), schedule=every(1), sinks=[("x", Lost())])
    monitor.step()
    monitor.close()
    assert "summary" in {fault.who for fault in monitor.errors}
    assert "No such file" in caplog.text
