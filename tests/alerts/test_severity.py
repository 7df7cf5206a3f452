"""The severity of an alert that fires: a worse one must persist before it changes what the alert says."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from esdmon.alerts import AlertManager, AlertRule, Finding, History
from esdmon.records import Report
from tests.alerts.histories import LOW, alerts_of, low, reading, report


def _by_degree(history: History) -> Iterable[Finding]:
    """Find a low layer, and a worse severity below 7."""
    for finding in low(history):
        is_worse = history.layers[finding.layer][-1].measures["stable_rank"] < 7.0
        yield replace(finding, severity="warning" if is_worse else "info")


def _lower(history: History) -> Iterable[Finding]:
    return (finding for finding in _by_degree(history) if finding.severity == "warning")


def degrees(pattern: str) -> list[Report]:
    """Reports of one layer: `x` where it is low, `X` where it is lower, `.` where not."""
    ranks = {"x": 8.0, "X": 5.0, ".": 20.0}
    return [
        report(step, reading(step, "fc1", measures={"stable_rank": ranks[mark]}))
        for step, mark in enumerate(pattern, start=1)
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("xxxxxXxxX", [(2, "info", 1, None)]),
        ("xxxxxXXX", [(2, "info", 1, None), (7, "warning", 6, 5)]),
        ("xxxX.XX", [(2, "info", 1, None), (7, "warning", 6, 3)]),
    ],
    ids=["once", "persistent", "interrupted"],
)
def test_a_notice_becomes_a_warning_when_that_persists(pattern: str, expected: list[Any]) -> None:
    """The warning has a beginning of its own."""
    alerts = alerts_of(replace(LOW, find=_by_degree), degrees(pattern))
    assert [(alert.step, alert.severity, alert.since, alert.after) for alert in alerts] == expected


def test_a_worse_finding_is_pending_until_it_persists() -> None:
    """So that the layer is read sooner; a resume does not forget it."""
    first, second = (AlertManager([replace(LOW, find=_by_degree)]) for _ in range(2))
    *before, last = degrees("xxxXX")
    for each in before:
        first.take(each, time=0.0)
    assert [(alert.severity, alert.since) for alert in first.pending] == [("warning", 4)]
    second.prepare(json.loads(json.dumps(first.state_dict())))()
    (alert,) = second.take(last, time=0.0)
    assert (alert.severity, alert.since, alert.after) == ("warning", 4, 3)
    assert second.pending == ()


def test_a_consequence_makes_no_notice_worse() -> None:
    """The cause is found in that layer, so the notice stays one."""
    cause = AlertRule("cause", _lower, mutes=("low",))
    alerts = alerts_of([cause, replace(LOW, find=_by_degree)], degrees("xxxXXXX"))
    assert [(alert.rule, alert.severity) for alert in alerts] == [("low", "info"), ("cause", "warning")]
