"""What holds for every built-in rule, and between them."""

import re
from dataclasses import replace
from typing import Any

import pytest

from esdmon.alerts import BUILT_IN_RULES, AlertRule
from esdmon.records import LayerReport
from esdmon.spectrum import Phase
from tests.alerts.histories import RULES, WRONG, alerts_of, reading, report


def test_every_rule_on_spectra_is_here() -> None:
    assert WRONG.keys() == {rule.name for rule in BUILT_IN_RULES if rule.counts == "moves"} | {"norm_explosion"}


@pytest.mark.parametrize("name", RULES)
def test_its_page_says_what_it_is_confused_with(name: str) -> None:
    """In one paragraph; the rules that it names exist."""
    (confused,) = [part for part in RULES[name].page.split("\n\n") if part.startswith("Not to be confused with: ")]
    named = set(re.findall(r"`([a-z_]+)`", confused))
    assert named <= RULES.keys() | {"requires_grad"}
    assert name not in named


@pytest.mark.parametrize("name", WRONG)
def test_it_fires_after_as_many_readings_as_it_asks_for_and_says_what_and_what_to_do(name: str) -> None:
    """And not before; it is resolved as many good readings later."""
    rule = RULES[name]
    good, wrong = range(1, 11), range(11, 11 + rule.checks)
    after = range(wrong.stop, wrong.stop + rule.clear)
    readings = [*map(reading, good), *map(WRONG[name], wrong), *map(reading, after)]
    fired, resolved = alerts_of(rule, (report(layer.step, layer) for layer in readings))
    assert (fired.rule, fired.layer, fired.state, fired.severity) == (name, "fc1", "firing", rule.severity)
    assert (fired.since, fired.step) == (11, wrong[-1])
    assert fired.message.startswith(f"fc1: {name}: ")
    where = f"in {rule.checks} checks since step 11" if rule.checks > 1 else "at step 11"
    assert f"{where}. {rule.advice}" in fired.message
    assert fired.evidence
    assert (resolved.id, resolved.state, resolved.severity, resolved.step) == (fired.id, "resolved", "info", after[-1])


@pytest.mark.parametrize("name", [name for name in WRONG if RULES[name].checks > 1])
@pytest.mark.parametrize(
    "fields",
    [{"moved": 0.0}, {"moved": 1e-7}, {"status": "failed"}, {"status": "degenerate"}],
    ids=["still", "rounding", "failed", "zero"],
)
def test_readings_that_are_no_news_do_not_count(name: str, fields: dict[str, Any]) -> None:
    """Forty readings of a weight that does not move are not evidence; nor is one that failed.

    But of a norm that has exploded the second reading is evidence, whether the weight still moves or not.
    """
    wrong = WRONG[name]
    readings = [*map(reading, range(1, 11)), wrong(11), *(wrong(step, **fields) for step in range(12, 52))]
    alerts = alerts_of(RULES[name], (report(layer.step, layer) for layer in readings))
    assert [alert.step for alert in alerts] == ([12] if name == "norm_explosion" and "moved" in fields else [])


@pytest.mark.parametrize("name", WRONG)
def test_a_pruned_weight_never_fires(name: str) -> None:
    """Its spectrum is that of the mask."""

    def pruned(step: int) -> LayerReport:
        layer = WRONG[name](step)
        return replace(layer, measures={**layer.measures, "sparsity": 0.8})

    readings = [*map(reading, range(1, 11)), *map(pruned, range(11, 31))]
    assert alerts_of(RULES[name], (report(layer.step, layer) for layer in readings)) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_measure_that_was_not_taken_is_nothing_wrong(name: str) -> None:
    """Nor one that is undefined."""
    readings = [reading(step) for step in range(1, 11)]
    bare = [replace(reading(step), measures={}, phase=Phase.UNCLASSIFIED) for step in range(11, 31)]
    assert alerts_of(RULES[name], (report(layer.step, layer) for layer in readings + bare)) == []


def test_what_a_layer_was_in_a_fault_is_not_what_it_is_compared_with() -> None:
    """Huge at the first reading, NaN at the next, and then restored."""
    huge = reading(1, measures={"frobenius_norm": 1e9, "spectral_norm": 1e9})
    nan = [replace(reading(step), status="nonfinite", reason="NaN") for step in range(2, 6)]
    readings = [huge, *nan, *map(reading, range(6, 30))]
    alerts = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [(alert.rule, alert.step) for alert in alerts] == [("non_finite", 2), ("non_finite", 6)]


def test_the_way_back_from_a_fault_is_no_fault() -> None:
    """A layer that was reinitialised, and restored from a checkpoint: its stable rank is what it was before."""
    noise = [
        reading(step, measures={"stable_rank": 60.0, "mp_soft_rank": 1.0}, phase=Phase.RANDOM_LIKE)
        for step in range(11, 31)
    ]
    readings = [*map(reading, range(1, 11)), *noise, *map(reading, range(31, 60))]
    alerts = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [(alert.rule, alert.state) for alert in alerts] == [
        ("phase_regression", "firing"),
        ("phase_regression", "resolved"),
    ]


def test_a_layer_has_one_alert_for_one_fault() -> None:
    """A collapse makes alpha small, the entropy low, the stable rank fall; only the collapse is announced."""

    def all_wrong(step: int) -> LayerReport:
        names = ("over_regularized", "entropy_collapse", "stable_rank_drop")
        measures = {key: value for name in names for key, value in WRONG[name](step).measures.items() if value < 1.7}
        return reading(step, measures=measures | {"hard_rank": 40.0, "stable_rank": 5.0}, phase=Phase.RANK_COLLAPSE)

    readings = [*map(reading, range(1, 11)), *map(all_wrong, range(11, 31))]
    assert [alert.rule for alert in alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))] == [
        "rank_collapse"
    ]


def test_a_layer_whose_weights_have_vanished_is_not_over_regularized_too() -> None:
    """What it learns then are a few large directions, as a layer that was set to zero does in an MLP-Mixer."""

    def vanished(step: int) -> LayerReport:
        layer = WRONG["over_regularized"](step)
        return replace(layer, measures={**layer.measures, "frobenius_norm": 0.8})

    readings = [*map(reading, range(1, 11)), *map(vanished, range(11, 31))]
    reports = [report(layer.step, layer) for layer in readings]
    assert [alert.rule for alert in alerts_of(BUILT_IN_RULES, reports)] == ["scale_collapse"]


def test_a_huge_element_is_an_explosion() -> None:
    """It makes one direction, and so does noise with the scales of its row and column: no initialisation does."""

    def huge(step: int) -> LayerReport:
        measures = {"spectral_norm": 3e4, "frobenius_norm": 3e4, "stable_rank": 1.0}
        return reading(step, measures=measures, nulls={"stable_rank": 1.0}, moved=3e3 if step == 21 else 1e-4)

    readings = [*map(reading, range(1, 21)), *map(huge, range(21, 31))]
    reports = [report(layer.step, layer) for layer in readings]
    assert [alert.rule for alert in alerts_of(BUILT_IN_RULES, reports)] == ["norm_explosion"]


@pytest.mark.parametrize("rule", BUILT_IN_RULES, ids=lambda rule: rule.name)
def test_each_rule_has_a_page_a_source_and_advice(rule: AlertRule) -> None:
    """`esdmon alerts explain`."""
    assert "Fires " in rule.page
    assert "Resolved " in rule.page
    assert "Source: " in rule.page or rule.name == "non_finite"
    assert rule.advice
    assert set(rule.mutes) <= RULES.keys()
