"""The scalar sink: what it hands to a tracker, and when."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import Alert, Esd
from esdmon.sinks import ScalarLoggerSink
from esdmon.sinks.scalar_logger import counter_kept
from esdmon.testing import check_sink, reports
from tests.rules import ALWAYS


class Tracker:
    """A tracker with a place for everything, which keeps all of it."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []
        self.alerts: list[tuple[int, str]] = []
        self.esds: list[tuple[int, dict[str, Esd]]] = []
        self.tables: list[tuple[str, Any, int]] = []
        self.flushed = 0

    def sink(self) -> ScalarLoggerSink:
        return ScalarLoggerSink(
            lambda numbers, step: self.numbers.append((step, numbers)),
            self.flush,
            place=self,
            alert=self.alert,
            histograms=lambda esds, step: self.esds.append((step, esds)),
            table=lambda name, table, step: self.tables.append((name, table, step)),
            where="over there",
        )

    def alert(self, alert: Alert, step: int) -> None:
        self.alerts.append((step, alert.message))

    def flush(self) -> None:
        self.flushed += 1


def test_a_tracker_gets_numbers_words_histograms_and_a_table() -> None:
    tracker = Tracker()
    torch.manual_seed(0)
    with esdmon.watch(
        nn.Linear(40, 20), every=1, budget=None, hook=False, sinks=tracker.sink(), alerts=[ALWAYS]
    ) as monitor:
        for step in range(1, 8):
            monitor.step(host_step=10 * step)
    assert monitor.errors == ()
    assert [step for step, _ in tracker.numbers] == [10, 20, 30, 40, 50, 60, 70]
    ((step, message),) = tracker.alerts
    assert (step, message[:6]) == (10, "always")
    assert [(step, list(esds)) for step, esds in tracker.esds] == [
        (10, ["esdmon_esd/Linear"]),
        (60, ["esdmon_esd/Linear"]),
    ]
    assert sum(tracker.esds[0][1]["esdmon_esd/Linear"].counts) == 20
    ((name, (columns, rows), step),) = tracker.tables
    assert (name, step, columns[0], rows[0][0]) == ("esdmon_phases", 70, "layer", "Linear")
    assert tracker.flushed == 1


def test_what_a_tracker_has_no_place_for_is_left_out() -> None:
    numbers: list[dict[str, float]] = []
    check_sink(lambda: ScalarLoggerSink(lambda values, _step: numbers.append(values)))
    assert numbers
    assert all(re.fullmatch(r"[\w\-.:/ ]{1,250}", tag, re.ASCII) for values in numbers for tag in values)


def test_a_second_monitor_on_one_tracker_has_tags_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """A text that names the tracker is one place, too."""
    tags: list[list[str]] = []
    first, second = (ScalarLoggerSink(lambda values, _: tags.append([*values]), place="the run 7") for _ in range(2))
    report = next(iter(reports()))
    first.write(report)
    second.write(report)
    assert tags[0]
    assert tags[1] == [tag.replace("esdmon_", "esdmon2_", 1) for tag in tags[0]]
    assert "another monitor writes to the run 7 already: tags of this one begin with esdmon2_" in caplog.text


def test_the_step_counter_of_a_tracker_is_set_back() -> None:
    run = SimpleNamespace(count=3)
    with counter_kept(run, "count"):
        run.count = 200
    assert run.count == 3
    with counter_kept(run, "other"):
        pass
    assert not hasattr(run, "other")
