"""The life of an alert: pending, firing, resolved, together with others, over a resume."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.alerts import AlertManager, AlertRule, Finding, History
from esdmon.alerts.lifecycle import AFTERMATH, COOL_DOWN
from esdmon.records import Report, Severity
from tests.alerts.histories import LOW, NAMES, alerts_of, one, reading, report, run, steps


def test_an_alert_is_sent_when_it_begins_and_when_it_ends() -> None:
    """And not between; `time` is that of the report."""
    manager = AlertManager([LOW])
    alerts = [alert for each in one(".xxxxx......") for alert in manager.take(each, time=100.0 + each.step)]
    assert [(alert.step, alert.state, alert.time) for alert in alerts] == [(3, "firing", 103.0), (9, "resolved", 109.0)]
    assert alerts[0].id == alerts[1].id == "low:fc1"
    assert alerts[1].message == "fc1: low resolved at step 9; it began at step 2."


def sparse(*wrong: Sequence[int]) -> list[Report]:
    """Reports of two layers at steps 100, 200, 300 …"""
    reports = run(*wrong, names=["fc1", "fc2"])
    return [
        replace(each, step=100 * each.step, layers=tuple(replace(layer, step=100 * each.step) for layer in each))
        for each in reports
    ]


def test_an_alert_names_the_last_check_without_a_finding() -> None:
    """What is wrong began between that and the first check with one."""
    (alert,) = alerts_of(LOW, sparse([], [0], [], [0], [0]))
    assert (alert.since, alert.after) == (400, 300)
    assert alert.message == "fc1: low: it is low, in 2 checks since step 400 (not yet at step 300). Raise it."
    (found,) = alert.by_layer
    assert str(found) == "fc1 since step 400 (not yet at step 300): it is low"


def test_an_alert_from_the_first_check_on_names_no_other() -> None:
    """Of several layers that which was found first; a step before needs no words."""
    alert, _ = alerts_of(LOW, sparse([1], [0, 1], [0, 1], *[[0, 1]] * 10))
    assert (alert.layer, alert.since, alert.after) == ("fc2", 100, None)
    assert "in 2 checks since step 100. Raise it." in alert.message
    (alert,) = alerts_of(LOW, one("..xx"))
    assert (alert.since, alert.after) == (3, 2)
    assert "since step 3. Raise it." in alert.message


def test_a_finding_that_was_muted_is_no_check_without_one() -> None:
    """At 500 to 800 the layer is low, but the rule is silent, since another has fired."""
    cause = AlertRule("replaced", _replaced_at_400, checks=1, clear=1, mutes_elsewhere=("low",))
    reports = sparse(*([] if step < 4 else [1] for step in range(1, 16)))
    (alert,) = (alert for alert in alerts_of([cause, LOW], reports) if alert.rule == "low")
    assert (alert.since, alert.after) == (1000, 300)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x.x.x.x.", []),
        ("xx.x..x...", [(2, "firing"), (10, "resolved")]),
        ("xxx...xxxxxx", [(2, "firing"), (6, "resolved")]),
        ("xxx..." + "." * COOL_DOWN + "xx", [(2, "firing"), (6, "resolved"), (8 + COOL_DOWN, "firing")]),
        ("xxx..." + "x" * (COOL_DOWN + 1), [(2, "firing"), (6, "resolved"), (7 + COOL_DOWN, "firing")]),
    ],
    ids=["pending-only", "hysteresis", "cool-down", "after-cool-down", "still-at-its-end"],
)
def test_the_life_of_an_alert(pattern: str, expected: list[tuple[int, str]]) -> None:
    """Two in a row begin it, three in a row end it; what fires again waits."""
    assert steps(alerts_of(LOW, one(pattern))) == expected


def test_a_layer_on_a_border_is_announced_ever_more_rarely() -> None:
    """Two hundred flaps are a handful of messages."""
    fired = [step for step, state in steps(alerts_of(LOW, one("xxx..." * 200))) if state == "firing"]
    assert len(fired) <= 8
    gaps = [later - earlier for earlier, later in pairwise(fired)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 10 * gaps[0]


def test_what_is_pending_can_be_looked_at() -> None:
    """It is not announced."""
    manager = AlertManager([LOW])
    seen = []
    for each in one(".x.xxx..."):
        raised = manager.take(each, time=0.0)
        seen.append(([alert.state for alert in manager.pending], [alert.state for alert in raised]))
    assert seen[:6] == [
        ([], []),
        (["pending"], []),
        ([], []),
        (["pending"], []),
        ([], ["firing"]),
        ([], []),
    ]


def test_layers_that_fire_together_are_one_message() -> None:
    """Thirty of them; it names a few and counts the others."""
    everything = list(range(30))
    fired, resolved = alerts_of(LOW, run(everything, everything, everything, [], [], []))
    assert fired.layers == resolved.layers == NAMES
    assert fired.message.startswith("layer.0, layer.1, layer.2 and 27 more: low: it is low (layer.0)")
    assert "layer.0, layer.1, layer.2 and 27 more: low resolved at step" in resolved.message
    assert [len(alert.by_layer) for alert in (fired, resolved)] == [20, 0]


def test_a_layer_with_a_number_for_a_name_is_called_a_layer() -> None:
    """As those of `nn.Sequential`: the number beside what was measured is a name."""
    (alert,) = alerts_of(LOW, run([0, 1], [0, 1], [0, 1], names=["0", "2"]))
    assert alert.message.startswith("0, 2: low: it is low (layer 0), in ")


def test_layers_that_follow_join_in_one_more_message() -> None:
    """Read in turn under a budget, they cross the line one by one: thirty layers are two or three messages."""
    alerts = alerts_of(LOW, run(*(range(min(step, 30)) for step in range(1, 80))))
    assert len(alerts) == 4
    assert {alert.id for alert in alerts} == {"low:layer.0"}
    assert alerts[0].layers == ("layer.0",)
    assert set(alerts[-1].layers) == set(NAMES)
    assert f"({len(alerts[1].layers)} layers in total, since step 1)" in alerts[1].message
    found = [(each.layer, each.since) for each in alerts[-1].by_layer]
    assert found == [(f"layer.{k}", k + 1) for k in range(20)]
    assert alerts[0].layer_lines == []
    assert alerts[-1].layer_lines[1:] == [
        *(f"layer.{k} since step {k + 1}: it is low" for k in range(1, 8)),
        "and 22 more",
    ]


def test_it_is_resolved_with_the_last_of_its_layers() -> None:
    """And not with the first."""
    assert steps(alerts_of(LOW, run(*[[0, 1]] * 3, *[[1]] * 6, *[[]] * 4))) == [(2, "firing"), (12, "resolved")]


def test_a_layer_that_is_gone_has_no_alert() -> None:
    """The model was changed in mid-run."""
    reports = [*one("xxx"), report(4, reading(4, "other"))]
    assert steps(alerts_of(LOW, reports)) == [(2, "firing"), (4, "resolved")]


def test_the_number_of_layers_that_fire_is_known_at_each_report() -> None:
    """For the charts."""
    manager = AlertManager([LOW])
    counts = []
    for each in run([0, 1], [0, 1], [0], [0], [0], [0], [], [], [], []):
        manager.take(each, time=0.0)
        counts.append(manager.firing.get("low"))
    assert counts == [None, 2, 2, 2, 1, 1, 1, 1, 0, 0]


def test_a_rule_that_is_not_asked_any_more_does_not_fire() -> None:
    """It was left out of the run that is resumed."""
    first, second = AlertManager([LOW]), AlertManager([replace(LOW, name="other")])
    for each in one("xxx"):
        first.take(each, time=0.0)
    second.prepare(first.state_dict())()
    assert (first.firing, second.firing) == ({"low": 1}, {})
    assert [alert for each in one("....") for alert in second.take(each, time=0.0)] == []


def test_severities_have_alerts_of_their_own() -> None:
    """A notice about fifty layers does not hide a warning about one, nor makes it fifty."""

    def find(history: History) -> Iterable[Finding]:
        return [Finding(name, "wrong", severity="info" if name != "layer.3" else None) for name in history.layers]

    alerts = alerts_of(AlertRule("mixed", find, checks=1, severity="critical"), run([]))
    assert [(alert.severity, len(alert.layers)) for alert in alerts] == [("critical", 1), ("info", 29)]


@given(st.text("x.", min_size=1, max_size=60), st.integers(0, 60))
def test_a_run_that_is_resumed_sends_the_alerts_of_one_that_was_not(pattern: str, cut: int) -> None:
    """At any point: between pending and firing, while it fires, in the cool-down. The state is plain JSON."""
    reports = one(pattern)
    first_to_last, first = AlertManager([LOW]), AlertManager([LOW])
    whole = [alert for each in reports for alert in first_to_last.take(each, time=0.0)]
    before = [alert for each in reports[:cut] for alert in first.take(each, time=0.0)]
    second = AlertManager([LOW])
    second.prepare(json.loads(json.dumps(first.state_dict())))()
    after = [alert for each in reports[cut:] for alert in second.take(each, time=0.0)]
    assert before + after == whole
    assert second.firing == first_to_last.firing


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=80))
def test_whatever_happens_each_alert_begins_before_it_ends(wrong: list[list[int]]) -> None:
    """Of one id, firing and resolved take turns, except for layers that join; and all ends when all is well."""
    healthy: list[list[int]] = [[]] * 3
    open_: set[str] = set()
    for alert in alerts_of(LOW, run(*wrong, *healthy, names=NAMES[:6])):
        if alert.state == "resolved":
            assert alert.id in open_
            open_.remove(alert.id)
        else:
            assert alert.id in open_ or not open_
            open_.add(alert.id)
    assert open_ == set()


def _replaced_at_400(history: History) -> Iterable[Finding]:
    return [Finding("fc1", "it was replaced")] if history.report.step == 400 else []


def _replaced(history: History) -> Iterable[Finding]:
    return [Finding("fc1", "it was replaced")] if history.report.step == 4 else []


def _low_elsewhere(*, severity: Severity = "warning", fires_before: bool = False) -> list[tuple[int, str, str]]:
    """Return the alerts where fc1 is replaced at step 4, and fc2 is low from then on, or from the beginning."""
    cause = AlertRule("replaced", _replaced, severity, checks=1, clear=1, mutes_elsewhere=("low",))
    reports = run(*([1] if fires_before or step >= 4 else [] for step in range(1, 16)), names=["fc1", "fc2"])
    alerts = alerts_of([cause, LOW], reports)
    return [(alert.step, alert.rule, alert.state) for alert in alerts if alert.rule == "low"]


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_what_follows_in_other_layers_is_an_alert_only_if_it_lasts(severity: Severity) -> None:
    """At the report of the cause it is found for the first time; then it is dropped for some reports."""
    after = 4 + AFTERMATH + LOW.checks
    assert _low_elsewhere(severity=severity) == [(after, "low", "firing")]


def test_what_fires_in_other_layers_already_goes_on() -> None:
    assert _low_elsewhere(fires_before=True) == [(2, "low", "firing")]


def test_a_cause_mutes_other_layers_after_a_resume() -> None:
    """As in the run that was not stopped; the state of an older version has nothing of it."""
    cause = AlertRule("replaced", _replaced, checks=1, clear=1, mutes_elsewhere=("low",))
    reports = run(*([1] if step >= 4 else [] for step in range(1, 16)), names=["fc1", "fc2"])
    for without, expected in (((), 4 + AFTERMATH + LOW.checks), (("begun",), 5)):
        first, second = AlertManager([cause, LOW]), AlertManager([cause, LOW])
        for each in reports[:4]:
            first.take(each, time=0.0)
        state = {key: value for key, value in json.loads(json.dumps(first.state_dict())).items() if key not in without}
        second.prepare(state)()
        alerts = [alert for each in reports[4:] for alert in second.take(each, time=0.0) if alert.rule == "low"]
        assert [alert.step for alert in alerts] == [expected]


def test_saved_states_keep_the_keys_of_the_first_version() -> None:
    """Whatever the fields are called in the code: states of older versions load, and go back to them."""
    manager = AlertManager([LOW])
    for each in one("xxx"):
        manager.take(each, time=0.0)
    state = manager.state_dict()
    assert state.keys() == {"memory", "reports", "cases", "open", "begun", "clear"}
    assert state["memory"].keys() == {"first", "steps", "unwell", "layers", "peaks", "pauses"}
    case = {"wrong", "right", "since", "what", "severity", "evidence", "firing", "told", "times", "quiet_until"}
    later = {"after", "worse", "mild"}
    assert state["cases"]["low"]["fc1"].keys() == case | later
    for each in state["cases"]["low"].values():  # of an older version
        for key in later:
            del each[key]
    del state["clear"], state["memory"]["pauses"]
    AlertManager([LOW]).prepare(state)()
