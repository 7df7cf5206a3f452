"""What is logged of readings that cost too much."""

import pytest

from esdmon.runtime.pipeline.dropped import DroppedReadings
from esdmon.schedule.budget import Budget
from tests.clocks import FakeClock


def test_one_costly_reading_is_not_reported_but_three_due_steps_in_a_row_are_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, dropped = FakeClock(), DroppedReadings()
    budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0, advance=2.0)
    budget.start()
    reports = []
    for seconds, spent in ((10, 3.0), (10, 0.0), (10, 0.0), (10, 5.0), (10, 5.0), (10, 5.0), (10, 5.0), (10, 5.0)):
        clock.passes(seconds)
        budget.spend(spent)
        dropped.check(budget)
        reports.append(len(caplog.records))
    assert reports == [0, 0, 0, 0, 0, 1, 1, 1]
    assert "monitoring has taken 30.0 % of the run so far (18.0 seconds), more than budget=0.01" in caplog.text
