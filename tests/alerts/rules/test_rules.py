"""What each rule finds, what it does not, and when it takes it back."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from esdmon.alerts import BUILT_IN_RULES, AlertManager, AlertRule
from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase
from tests.alerts.histories import RULES, reading, report, series, steps, told

Wrong = Callable[[int], LayerReport]


def _over(step: int, **fields: Any) -> LayerReport:
    measures = {"alpha": 1.5, "alpha_high": 1.6, "alpha_stderr": 0.05, "erg_gap": -2.0}
    return reading(step, measures=measures, phase=Phase.HEAVY_TAILED, **fields)


def _collapsed(step: int, **fields: Any) -> LayerReport:
    return reading(step, measures={"hard_rank": 40.0}, phase=Phase.RANK_COLLAPSE, alpha_is_meaningful=False, **fields)


WRONG: dict[str, Wrong] = {
    "over_regularized": _over,
    "rank_collapse": _collapsed,
    "correlation_trap": lambda step, **fields: reading(step, measures={"trap": 2.0}, **fields),
    "scale_collapse": lambda step, **fields: reading(step, measures={"frobenius_norm": 0.8}, **fields),
    "entropy_collapse": lambda step, **fields: reading(step, measures={"matrix_entropy": 0.6}, **fields),
    "stable_rank_drop": lambda step, **fields: reading(step, measures={"stable_rank": 5.0}, **fields),
    "norm_explosion": lambda step, **fields: reading(step, measures={"spectral_norm": 40.0}, **fields),
    "phase_regression": lambda step, **fields: reading(
        step, phase=Phase.RANDOM_LIKE, measures={"mp_soft_rank": 1.0}, **fields
    ),
}
"""For each rule that looks at spectra a reading that it finds wrong after ten good ones."""


def test_every_rule_on_spectra_is_here() -> None:
    assert WRONG.keys() == {rule.name for rule in BUILT_IN_RULES if rule.counts == "moves"}


@pytest.mark.parametrize("name", WRONG)
def test_it_fires_after_as_many_readings_as_it_asks_for_and_says_what_and_what_to_do(name: str) -> None:
    """And not before; it is resolved as many good readings later."""
    rule = RULES[name]
    good, wrong = range(1, 11), range(11, 11 + rule.checks)
    after = range(wrong.stop, wrong.stop + rule.clear)
    readings = [*map(reading, good), *map(WRONG[name], wrong), *map(reading, after)]
    fired, resolved = told(rule, (report(layer.step, layer) for layer in readings))
    assert (fired.rule, fired.layer, fired.state, fired.severity) == (name, "fc1", "firing", rule.severity)
    assert (fired.since, fired.step) == (11, wrong[-1])
    assert fired.message.startswith(f"fc1: {name}: ")
    assert f"in {rule.checks} checks since step 11. {rule.advice}" in fired.message
    assert fired.evidence
    assert (resolved.id, resolved.state, resolved.severity, resolved.step) == (fired.id, "resolved", "info", after[-1])


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    "fields",
    [{"moved": 0.0}, {"moved": 1e-7}, {"status": "failed"}, {"status": "degenerate"}],
    ids=["still", "rounding", "failed", "zero"],
)
def test_readings_that_are_no_news_do_not_count(name: str, fields: dict[str, Any]) -> None:
    """The same reading of a weight that stands still, said forty times, is no evidence; nor is one that failed."""
    wrong = WRONG[name]
    readings = [*map(reading, range(1, 11)), wrong(11), *(wrong(step, **fields) for step in range(12, 52))]
    assert told(RULES[name], (report(layer.step, layer) for layer in readings)) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_pruned_weight_never_fires(name: str) -> None:
    """Its spectrum is that of the mask."""

    def pruned(step: int) -> LayerReport:
        layer = WRONG[name](step)
        return replace(layer, measures={**layer.measures, "sparsity": 0.8})

    readings = [*map(reading, range(1, 11)), *map(pruned, range(11, 31))]
    assert told(RULES[name], (report(layer.step, layer) for layer in readings)) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_measure_that_was_not_taken_is_nothing_wrong(name: str) -> None:
    """Nor one that is undefined."""
    readings = [reading(step) for step in range(1, 11)]
    bare = [replace(reading(step), measures={}, phase=Phase.UNCLASSIFIED) for step in range(11, 31)]
    assert told(RULES[name], (report(layer.step, layer) for layer in readings + bare)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha_is_meaningful": False},
        {"measures": {"alpha": 1.85, "alpha_high": 1.9, "alpha_stderr": 0.06}},
        {"measures": {"alpha": 1.7, "alpha_high": 2.1, "alpha_stderr": 0.02}},
    ],
    ids=["not-meaningful", "within-its-error", "other-fits"],
)
def test_over_regularised_needs_a_meaningful_alpha_and_its_uncertainty(fields: dict[str, Any]) -> None:
    """1.9 ± .06 may well be 2."""
    unsure = [replace(_over(step), **fields) for step in range(2, 10)]
    assert told(RULES["over_regularized"], (report(layer.step, layer) for layer in [reading(1), *unsure])) == []


def test_a_layer_that_came_over_regularised_is_as_it_is() -> None:
    """One of a pretrained model, or one that started at zero."""
    assert told(RULES["over_regularized"], (report(step, _over(step)) for step in range(1, 20))) == []


def test_over_regularised_without_the_second_witness_is_a_notice() -> None:
    """Alpha alone wakes nobody."""
    alone = [replace(_over(step), measures={**_over(step).measures, "erg_gap": -0.4}) for step in range(2, 6)]
    readings = [reading(1), *alone]
    (alert,) = told(RULES["over_regularized"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == "info"
    assert "begins at 0.8 times the start of the ERG tail, which does not confirm it" in alert.message


def test_a_border_makes_no_flapping() -> None:
    """What takes 2 to begin takes more than 2.1 to end, though `alpha_is_meaningful` comes and goes."""
    values = [3.0, 1.5, 1.5, 1.5, 1.95, 2.05, 1.95, 2.05, 2.05, 2.05, 2.05, 1.5]
    readings = [
        replace(_over(step), measures={**_over(step).measures, "alpha": alpha}, alpha_is_meaningful=alpha < 1.9)
        for step, alpha in enumerate(values, start=1)
    ]
    assert steps(told(RULES["over_regularized"], (report(layer.step, layer) for layer in readings))) == [(4, "firing")]


def test_a_layer_that_came_collapsed_is_a_notice_until_it_loses_more() -> None:
    """From a checkpoint, say. What is a notice and becomes worse is told again."""
    came = [_collapsed(step) for step in range(1, 6)]
    worse = [replace(_collapsed(step), measures={"hard_rank": 30.0}) for step in range(6, 10)]
    alerts = told(RULES["rank_collapse"], (report(layer.step, layer) for layer in came + worse))
    assert [(alert.step, alert.severity) for alert in alerts] == [(3, "info"), (6, "error")]


def test_a_layer_that_fills_up_from_zero_is_not_collapsed() -> None:
    """Its first weights are a few gradients, of low rank."""
    rising = [replace(_collapsed(step), measures={"hard_rank": 20.0 + step}) for step in range(1, 30)]
    assert told(RULES["rank_collapse"], (report(layer.step, layer) for layer in rising)) == []


def test_a_trap_that_was_there_from_the_start_is_the_layers_own() -> None:
    """Embeddings of large models have them."""
    assert series("correlation_trap", "trap", [2.0] * 20) == []
    assert series("correlation_trap", "trap", [1.1] * 9 + [1.6] * 9) == []
    assert series("correlation_trap", "trap", [0.5] * 9 + [1.8] * 3 + [1.3] * 9) == [(12, "firing")]


@pytest.mark.parametrize(
    ("values", "severity"),
    [([0.5] * 10 + [2.0] * 10, "warning"), (np.linspace(0.5, 2.0, 40), "info")],
    ids=["leap", "slow"],
)
def test_a_trap_that_comes_slowly_is_a_notice(values: Any, severity: str) -> None:
    """Healthy networks make them too."""
    readings = [reading(step, measures={"trap": value}) for step, value in enumerate(values, start=1)]
    (alert,) = told(RULES["correlation_trap"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == severity


def test_what_a_layer_was_in_a_fault_is_not_what_it_is_compared_with() -> None:
    """Huge at the first reading, NaN at the next, and then restored."""
    huge = reading(1, measures={"frobenius_norm": 1e9, "spectral_norm": 1e9})
    nan = [replace(reading(step), status="nonfinite", reason="NaN") for step in range(2, 6)]
    readings = [huge, *nan, *map(reading, range(6, 30))]
    alerts = told(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [(alert.rule, alert.step) for alert in alerts] == [("non_finite", 2), ("non_finite", 6)]


LEAPS = {
    "stable_rank_drop": ("stable_rank", 20.0, 6.0),
    "entropy_collapse": ("matrix_entropy", 0.9, 0.65),
    "norm_explosion": ("spectral_norm", 4.0, 20.0),
}


@pytest.mark.parametrize("name", LEAPS)
def test_a_leap_is_told_and_lasts_until_it_is_taken_back(name: str) -> None:
    """However long: the baseline is that from before it, also for what comes after: the way back is no leap."""
    measure, before, after = LEAPS[name]
    checks = RULES[name].checks
    for values in ([before] * 10 + [after] * 40 + [before] * 30, [before] * 10 + [after] * 40 + [before] * 3):
        assert series(name, measure, values) == [(10 + checks, "firing"), (53, "resolved")]


def test_the_way_back_from_a_fault_is_no_fault() -> None:
    """A layer that was begun anew, and restored from a checkpoint: its stable rank is what it was before."""
    noise = [
        reading(step, measures={"stable_rank": 60.0, "mp_soft_rank": 1.0}, phase=Phase.RANDOM_LIKE)
        for step in range(11, 31)
    ]
    readings = [*map(reading, range(1, 11)), *noise, *map(reading, range(31, 60))]
    alerts = told(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [(alert.rule, alert.state) for alert in alerts] == [
        ("phase_regression", "firing"),
        ("phase_regression", "resolved"),
    ]


@pytest.mark.parametrize("name", LEAPS)
def test_no_leap_is_told_before_there_is_a_baseline(name: str) -> None:
    """Early training is all leaps."""
    measure, before, after = LEAPS[name]
    assert series(name, measure, [before] * 3 + [after] * 20) == []


@pytest.mark.parametrize("name", LEAPS)
def test_the_same_distance_at_a_steady_pace_is_no_leap(name: str) -> None:
    """Stable rank falls and norms grow in every healthy training."""
    measure, before, after = LEAPS[name]
    assert series(name, measure, np.geomspace(before, after, 30)) == []


@pytest.mark.parametrize("name", LEAPS)
def test_a_layer_that_goes_to_and_fro_has_a_wide_baseline(name: str) -> None:
    """A factor of two is nothing where the last readings scatter by as much."""
    measure, before, after = LEAPS[name]
    rng = np.random.default_rng(0)
    values = before * np.exp(rng.normal(0, abs(np.log(after / before)) / 3, 200))
    if name == "entropy_collapse":
        values = np.minimum(values, 1.0)
    assert series(name, measure, values) == []


def test_a_matrix_of_few_eigenvalues_has_no_number_of_directions() -> None:
    """Its rank of 5 becomes 2 at a whim."""
    values = [9.0] * 10 + [2.0] * 10
    assert series("stable_rank_drop", "stable_rank", values, M=10) == []


def test_a_layer_that_begins_to_learn_is_not_one_that_fails() -> None:
    """From 36, where noise has 40, to 10: its first spikes."""
    assert series("stable_rank_drop", "stable_rank", [36.0] * 10 + [10.0] * 20) == []


def test_a_spike_that_fades_away_slowly_is_no_regression() -> None:
    """Until none is left."""
    soft_ranks = np.linspace(0.5, 1.0, 40)
    phases = [Phase.BULK_SPIKES if soft_rank < 0.84 else Phase.RANDOM_LIKE for soft_rank in soft_ranks]
    readings = [
        reading(step, measures={"mp_soft_rank": soft_rank}, phase=phase)
        for step, (soft_rank, phase) in enumerate(zip(soft_ranks, phases, strict=True), start=1)
    ]
    assert told(RULES["phase_regression"], (report(layer.step, layer) for layer in readings)) == []


def test_scale_collapse_is_told_however_slowly_it_comes() -> None:
    """Against the first reading of the run, and not the last ones; it is resolved at a fifth."""
    values = [*np.geomspace(4.0, 0.35, 60), 0.5, 0.6, 0.7, 0.9, 0.9, 0.9]
    ((fired, _), (resolved, _)) = series("scale_collapse", "frobenius_norm", values)
    assert 50 < fired < 62
    assert resolved == 66


@pytest.mark.parametrize("phase", [Phase.BULK_SPIKES, Phase.UNCLASSIFIED, Phase.RANK_COLLAPSE])
def test_one_phase_back_is_no_regression_nor_is_what_has_no_place_in_the_order(phase: Phase) -> None:
    """Layers on a border go to and fro; a collapse has a rule of its own."""
    readings = [*map(reading, range(1, 11)), *(reading(step, phase=phase) for step in range(11, 20))]
    assert told(RULES["phase_regression"], (report(layer.step, layer) for layer in readings)) == []


def test_nan_is_told_at_once_and_when_it_was_not_there() -> None:
    """One reading is enough; the last good step is where to go back to."""
    bad = replace(reading(20), status="nonfinite", reason="3 of 9 elements are NaN or infinite")
    alerts = told(RULES["non_finite"], [report(10, reading(10)), report(20, bad), report(30, reading(30))])
    assert steps(alerts) == [(20, "firing"), (30, "resolved")]
    assert alerts[0].message.startswith(
        "fc1: non_finite: 3 of 9 elements are NaN or infinite (all finite at step 10), at step 20. Restore"
    )


def still(step: int, *, others: float = 0.01, **fields: Any) -> Report:
    """A report in which one layer was read at step 2 and has not moved since, and another has."""
    dead = replace(reading(2, "dead", **fields), drift=0.0, emitted_step=step)
    return report(step, reading(step, moved=others), dead)


def test_a_layer_that_stands_still_while_others_move_is_dead() -> None:
    """After five reports; it lives again with the first move."""
    reports = [report(2, reading(2), reading(2, "dead"))]
    reports += [still(step) for step in range(3, 20)]
    reports += [report(20, reading(20), reading(20, "dead"))]
    alerts = told(RULES["dead_layer"], reports)
    assert [(alert.step, alert.state, alert.layer) for alert in alerts] == [
        (7, "firing", "dead"),
        (20, "resolved", "dead"),
    ]
    assert (
        "‖ΔW‖/‖W‖ is 0, at most 1e-06, while other layers move, and it is in the optimizer, in 5 checks since step 3"
        in alerts[0].message
    )


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"trainable": False}, "info"),
        ({"in_optimizer": False}, None),
        ({"in_optimizer": None}, None),
        ({"others": 0.0}, None),
        ({"others": 1e-5}, None),
        ({"status": "degenerate"}, None),
    ],
    ids=["frozen", "not-in-optimizer", "no-optimizer", "all-still", "converged", "zero"],
)
def test_a_layer_that_is_meant_to_stand_still_wakes_nobody(fields: dict[str, Any], severity: str | None) -> None:
    """Frozen in the optimizer is a notice; a warm-up from learning rate zero, a LoRA B that is zero are nothing."""
    alerts = told(
        RULES["dead_layer"], [report(2, reading(2), reading(2, "dead")), *(still(s, **fields) for s in range(3, 20))]
    )
    assert [alert.severity for alert in alerts] == ([] if severity is None else [severity])


def test_a_layer_whose_reading_fails_is_reported_and_so_is_its_recovery() -> None:
    """After three reports, and at the first reading that works; what is skipped or zero has its own reason."""
    rule = RULES["reading_failed"]
    failing = [
        report(step, reading(step), reading(step, "fc2", status="failed" if step < 6 else "ok", reason="LinAlgError"))
        for step in range(1, 9)
    ]
    fired, resolved = told(rule, failing)
    assert (fired.layer, fired.severity, fired.step) == ("fc2", "warning", 3)
    assert fired.message.startswith("fc2: reading_failed: its reading failed: LinAlgError")
    assert (resolved.state, resolved.step) == ("resolved", 6)
    for status in ("skipped", "degenerate", "nonfinite"):
        assert told(rule, (report(step, reading(step, status=status)) for step in range(1, 9))) == []


def test_a_monitor_that_reads_nothing_says_so_once() -> None:
    """All layers fail: it is the monitor that is blind, and one alert says so."""
    blind = [
        report(step, *(reading(step, name, status="failed", reason="RuntimeError: TF32") for name in ("fc1", "fc2")))
        for step in range(1, 9)
    ]
    (alert,) = told(RULES["reading_failed"], blind)
    assert (alert.layer, alert.step) == ("", 3)
    assert "the reading of every layer failed: RuntimeError: TF32" in alert.message


def test_rules_may_look_back_as_far_as_their_threshold_says() -> None:
    """500 due steps: further than what is remembered where no rule asks for it."""
    rule = replace(RULES["stale_monitor"], find=partial(RULES["stale_monitor"].find, due_steps=500))
    old = [report(step, reading(step), reading(1, "old", emitted_step=step)) for step in range(1, 600)]
    (alert,) = told(rule, old)
    assert (alert.since, alert.step) == (501, 503)


def test_an_alert_ends_in_a_layer_that_has_not_moved_since_it_was_resumed() -> None:
    """Its weights were not finite when the state was saved, and are good again: there is no reading that moved."""
    (alert, *_) = told(RULES["non_finite"], [report(1, reading(1, status="nonfinite", moved=math.nan))])
    assert alert.rule == "non_finite"
    manager = AlertManager([RULES["non_finite"]])
    manager.take(report(1, reading(1, status="nonfinite", moved=0.0)), time=0.0)
    resumed = AlertManager([RULES["non_finite"]])
    resumed.prepare(manager.state_dict())()
    (ended,) = resumed.take(report(2, reading(2, moved=0.0)), time=0.0)
    assert ended.state == "resolved"


def test_a_monitor_that_cannot_keep_up_says_so() -> None:
    """Fifty due steps without a reading of a layer that has moved; one that has not is as good as read."""
    fresh = [report(step, reading(step), reading(1, "old")) for step in range(1, 60)]
    fired = told(RULES["stale_monitor"], fresh)
    assert steps(fired) == [(53, "firing")]
    assert fired[0].message.startswith("stale_monitor: old not read for 50 due steps, since step 3 or earlier")
    assert fired[0].layers == ()
    unchanged = [report(s, reading(s), replace(reading(1, "old"), unchanged=True)) for s in range(1, 60)]
    assert told(RULES["stale_monitor"], unchanged) == []
    waiting = [report(step, reading(step), waiting=["late"]) for step in range(1, 60)]
    assert "late not read" in told(RULES["stale_monitor"], waiting)[0].message


def test_a_layer_has_one_alert_for_one_fault() -> None:
    """A collapse makes alpha small, the entropy low, the stable rank fall; only the collapse is told."""

    def all_wrong(step: int) -> LayerReport:
        names = ("over_regularized", "entropy_collapse", "stable_rank_drop")
        measures = {key: value for name in names for key, value in WRONG[name](step).measures.items() if value < 1.7}
        return reading(step, measures=measures | {"hard_rank": 40.0, "stable_rank": 5.0}, phase=Phase.RANK_COLLAPSE)

    readings = [*map(reading, range(1, 11)), *map(all_wrong, range(11, 31))]
    assert [alert.rule for alert in told(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))] == [
        "rank_collapse"
    ]


@pytest.mark.parametrize("rule", BUILT_IN_RULES, ids=lambda rule: rule.name)
def test_each_rule_has_a_page_a_source_and_advice(rule: AlertRule) -> None:
    """`esdmon alerts explain`."""
    assert "Fires " in rule.page
    assert "Resolved " in rule.page
    assert "Source: " in rule.page or rule.name == "non_finite"
    assert rule.advice
    assert set(rule.mutes) <= RULES.keys()


@pytest.mark.parametrize(
    ("moved", "norms", "expected"),
    [
        (100.0, [400.0, 420.0, 440.0], [(2, "firing")]),
        (100.0, [400.0, 7.0, 7.0, 7.0, 7.0], []),
        (3.0, [400.0, 420.0, 440.0], []),
        (np.inf, [400.0, 420.0, 440.0], []),
    ],
    ids=["blew-up", "came-back", "moved", "from-zero"],
)
def test_an_explosion_before_the_first_reading_is_told(
    moved: float, norms: list[float], expected: list[tuple[int, str]]
) -> None:
    """Of 4, say; there is nothing to expect yet, but it is known how far it has moved."""
    readings = [
        reading(step, measures={"spectral_norm": norm}, moved=moved if step == 1 else 0.01)
        for step, norm in enumerate(norms, start=1)
    ]
    assert steps(told(RULES["norm_explosion"], (report(layer.step, layer) for layer in readings))) == expected
