"""A monitor from which nothing comes."""

from collections.abc import Iterator

from esdmon.alerts import Actions, AlertManager
from esdmon.alerts.watchdog import DUE_STEPS_WITHOUT_REPORT, Watchdog
from esdmon.records import Alert, Report
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import every
from tests.alerts.histories import RULES
from tests.fakes import Reads


class Hangs(Reads):
    """They are under way, until they are let through."""

    is_let_through = False

    def finished(self) -> Iterator[Report]:
        if self.is_let_through:
            yield from super().finished()


def test_a_monitor_that_hangs_says_so_once_and_when_it_goes_on() -> None:
    """After fifty due steps without a report."""
    readings = Hangs()
    monitor = Monitor(readings, schedule=every(2), alerts=AlertManager([RULES["stale_monitor"]]))
    for _ in range(2 * DUE_STEPS_WITHOUT_REPORT - 1):
        monitor.step()
    before = list(monitor.alerts)
    assert before == []
    for _ in range(100):
        monitor.step()
    readings.is_let_through = True
    monitor.step()
    monitor.step()
    fired, resolved = monitor.alerts
    assert (fired.rule, fired.severity, fired.step, fired.since) == (
        "stale_monitor",
        "warning",
        2 * DUE_STEPS_WITHOUT_REPORT,
        2,
    )
    assert fired.message.startswith("stale_monitor: no report in 50 due steps: readings hang, fail, are paused, or")
    assert fired.message.endswith("See monitor.errors; where that is empty, use mode='sync', or increase every=.")
    assert (resolved.state, resolved.id) == ("resolved", fired.id)


def test_a_monitor_that_its_action_closes_counts_no_further_step() -> None:
    """Where nothing is under way either, the steps up to the next due one take a shorter path."""

    class Silent(Reads):
        def begin(self, *_: object, **__: object) -> None:
            pass

    actions = Actions(calls=(("close", lambda _alert: monitor.close(is_complete=False)),))
    book = AlertManager([RULES["stale_monitor"]])
    monitor = Monitor(Silent(), schedule=every(3), alerts=book, actions=actions)
    for _ in range(3 * DUE_STEPS_WITHOUT_REPORT + 2):
        monitor.step()
    assert (monitor.closed, monitor.steps) == (True, 3 * DUE_STEPS_WITHOUT_REPORT)
    assert monitor.errors == ()


def test_it_ends_when_a_report_arrives_and_not_at_the_step_of_that_report() -> None:
    """The first report of a thread without an idle core is of a step long before the alert."""
    watchdog = Watchdog(RULES["stale_monitor"])
    found = [watchdog.due(step) for step in range(1, 61)]
    assert [each.step for each in found if each is not None] == [DUE_STEPS_WITHOUT_REPORT]
    resolved = watchdog.report(1)
    assert resolved is not None
    assert (resolved.step, resolved.since) == (60, 1)
    assert resolved.message == "stale_monitor resolved at step 60; it began at step 1."


def test_it_is_silent_where_that_rule_is_not_asked_or_reports_come() -> None:
    off, on = Watchdog(None), Watchdog(RULES["stale_monitor"])
    alerts: list[Alert | None] = [off.due(step) for step in range(1, 200)]
    for step in range(1, 200):
        alerts += [on.due(step), on.report(step)]
    assert set(alerts) == {None}
