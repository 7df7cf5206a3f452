"""What a rule gets and may return, and which fields it may have."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from esdmon.alerts import AlertManager, AlertRule, Finding, History
from esdmon.alerts.history import WINDOW
from esdmon.errors import InputError
from esdmon.isolation import Faults
from tests.alerts.histories import LOW, alerts_of, low, one, reading, report, run


def test_a_rule_looks_at_the_layers_that_it_is_for() -> None:
    """By patterns."""
    rule = replace(LOW, layers=("layer.1*",), exclude=("layer.11", "layer.12"))
    (alert,) = alerts_of(rule, run(range(30), range(30)))
    assert alert.layers == ("layer.1", "layer.10", *(f"layer.{k}" for k in range(13, 20)))


def test_a_rule_that_fails_ends_nothing_and_stops_no_other() -> None:
    """Its failure resolves nothing; after three in a row it is paused."""
    calls = []

    def find(history: History) -> Iterable[Finding]:
        calls.append(history.report.step)
        if len(calls) > 2:
            raise KeyError("stable_rank")
        return low(history)

    faults = Faults()
    manager = AlertManager([replace(LOW, name="failing", find=find), LOW], faults=faults)
    alerts = [alert for each in one("xxx.......") for alert in manager.take(each, time=0.0)]
    assert [(alert.rule, alert.state) for alert in alerts] == [
        ("failing", "firing"),
        ("low", "firing"),
        ("low", "resolved"),
    ]
    assert [(fault.who, fault.count) for fault in faults] == [("rule failing", 3)]
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["it is low"], "TypeError: a rule must return Finding objects; got 'it is low'"),
        ([None], "TypeError: a rule must return Finding objects; got None"),
        (3, "TypeError: a rule must return Finding objects; got 3"),
        (None, "TypeError: a rule must return Finding objects; got None"),
        ("it is low", "TypeError: a rule must return Finding objects; got 'it is low'"),
        (
            [Finding("fc9", "low")],
            "ValueError: a rule found something in the layer 'fc9', which is not a layer of this model",
        ),
    ],
    ids=repr,
)
def test_what_is_no_finding_is_the_rules_fault(answer: Any, said: str) -> None:
    faults = Faults()
    AlertManager([AlertRule("bad", lambda _history: answer)], faults=faults).take(one(".")[0], time=0.0)
    assert [(fault.who, fault.message) for fault in faults] == [("rule bad", said)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"severity": "bad"}, r"the rule low: severity= must be one of info, warning, error, critical; got 'bad'$"),
        ({"counts": "steps"}, r"the rule low: counts= must be one of moves, readings, reports; got 'steps'$"),
        ({"checks": 0}, r"the rule low: checks= must be a whole number, 1 or more; got 0$"),
        ({"clear": "3"}, r"the rule low: clear= must be a whole number, 1 or more; got '3'$"),
        ({"needs": "alpha"}, r"the rule low: needs= must be a tuple of names; got 'alpha': give \('alpha',\)$"),
        ({"find": "low"}, r"AlertRule needs a name and a function; got 'low' and 'low'$"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_rule_of_impossible_fields_is_refused_when_it_is_made(fields: dict[str, Any], said: str) -> None:
    """A severity that nobody knows made all reports fail."""
    with pytest.raises(InputError, match=said):
        replace(LOW, **fields)


def test_a_rule_is_given_the_readings_that_count_and_what_its_alert_began_on() -> None:
    """The last sixteen, the first of the run, and the steps of the reports."""
    seen: list[History] = []

    def find(history: History) -> Iterable[Finding]:
        seen.append(history)
        return [Finding(name, "wrong", {"step": float(history.report.step)}) for name in history.layers]

    alerts_of(AlertRule("spy", find, checks=2), [report(step, reading(step, moved=step % 3)) for step in range(1, 61)])
    assert [layer.step for layer in seen[-2].layers["fc1"]][-3:] == [56, 58, 59]
    assert len(seen[-2].layers["fc1"]) == WINDOW
    assert seen[-2].first["fc1"].step == 1
    assert seen[-2].firing == {"fc1": {"step": 2.0}}
    assert seen[-1].layers == {}
    assert list(seen[-1].steps) == list(range(1, 61))
