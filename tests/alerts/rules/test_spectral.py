"""Rules on the shape of a spectrum: tails that are too heavy, and lost rank."""

import math
from dataclasses import replace
from typing import Any

import pytest

from esdmon.spectrum import Phase
from tests.alerts.histories import RULES, alerts_of, collapsed, over, reading, report, steps


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
    unsure = [replace(over(step), **fields) for step in range(2, 10)]
    assert alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in [reading(1), *unsure])) == []


def test_a_layer_that_came_over_regularised_is_as_it_is() -> None:
    """One of a pretrained model, or one that started at zero."""
    assert alerts_of(RULES["over_regularized"], (report(step, over(step)) for step in range(1, 20))) == []


@pytest.mark.parametrize(("view", "count"), [("weight", 1), ("merged", 1), ("difference", 0), ("lora-delta", 0)])
def test_only_weights_are_over_regularised(view: str, count: int) -> None:
    """The tail of a difference from a reference says nothing of the weight."""
    reports = (report(layer.step, replace(layer, view=view)) for layer in [reading(1), *map(over, range(2, 6))])
    assert len(alerts_of(RULES["over_regularized"], reports)) == count


def test_over_regularised_without_the_second_witness_is_a_notice() -> None:
    """Alpha alone wakes nobody."""
    alone = [replace(over(step), measures={**over(step).measures, "erg_gap": -0.4}) for step in range(2, 6)]
    readings = [reading(1), *alone]
    (alert,) = alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == "info"
    assert "a second criterion, the ERG tail of SETOL, does not confirm this (ratio 0.8)" in alert.message


@pytest.mark.parametrize(
    ("apart", "moved", "begins", "says"),
    [
        (1, 0.014, 4000, ""),
        (1, 0.016, 4000, "the layer moves by 16% of its norm in 100 steps"),
        (25, 0.07, 4000, ""),
        (25, 0.08, 4000, "the layer moves by 16% of its norm in 100 steps"),
        (25, 0.08, 400, ""),  # so do healthy layers at first
        (400, 0.28, 4000, ""),
        (1, math.nan, 4000, ""),
    ],
)
def test_over_regularised_without_a_cause_is_a_notice(apart: int, moved: float, begins: int, says: str) -> None:
    """A healthy layer that has learned all of its data comes to such an alpha, and hardly moves any more."""
    readings = [reading(begins), *(over(begins + apart * k, moved=moved) for k in range(1, 5))]
    (alert,) = alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == ("warning" if says else "info")
    assert (says or "the layer neither shrinks nor moves far, and may be healthy") in alert.message


@pytest.mark.parametrize(("moves", "extra"), [([0.845, 0.278], 2), ([1.62, 0.36, 0.196, 0.149], 0)], ids=str)
def test_a_layer_that_slows_down_after_long_first_moves_is_a_notice(moves: list[float], extra: int) -> None:
    """As by Prodigy and D-Adaptation once `d` is found."""
    scheduled = [over(20 + 20 * k, moved=moved) for k, moved in enumerate(moves, start=1)]
    close = [over(scheduled[-1].step + k, moved=0.03, extra=True) for k in range(1, extra + 1)]
    reports = (report(layer.step, layer) for layer in [reading(20), *scheduled, *close])
    assert {alert.severity for alert in alerts_of(RULES["over_regularized"], reports)} == {"info"}


def test_a_layer_that_hardly_learned_before_its_learning_rate_rose_does_not_go_on_to_move() -> None:
    """As many steps as the run has had would not have moved it so far."""
    for way, severity in ((0.1, "info"), (0.9, "warning")):
        before = [reading(20 * k, learning_rate=1e-5 * 1.5**k, start_ratio=way) for k in range(1, 13)]
        after = [over(20 * k, moved=0.5, learning_rate=1e-5 * 1.5**k, start_ratio=way) for k in range(13, 17)]
        reports = (report(layer.step, layer) for layer in [*before, *after])
        assert {alert.severity for alert in alerts_of(RULES["over_regularized"], reports)} == {severity}


@pytest.mark.parametrize(("top", "severity"), [(17, "info"), (12, "info"), (1, "warning")], ids=str)
def test_a_layer_that_moves_far_at_the_top_of_a_cycle_of_the_learning_rate_is_a_notice(top: int, severity: str) -> None:
    """Its moves were shorter before, and the rate will fall again."""

    def rate(k: int) -> float:
        return 0.01 * min(k / top, 1.0)

    before = [reading(20 * k, learning_rate=rate(k), start_ratio=0.7) for k in range(1, 13)]
    after = [over(20 * k, moved=0.5, learning_rate=rate(k), start_ratio=0.9) for k in range(13, 17)]
    reports = (report(layer.step, layer) for layer in [*before, *after])
    assert {alert.severity for alert in alerts_of(RULES["over_regularized"], reports)} == {severity}


@pytest.mark.parametrize("computed", [False, True])
def test_the_way_of_a_weight_that_is_computed_is_no_cause(*, computed: bool) -> None:
    """As by `spectral_norm`, which holds its norm: all that it learns goes on to turn it."""
    readings = [reading(4000), *(over(4000 + 20 * k, moved=0.1) for k in range(1, 5))]
    reports = (report(layer.step, replace(layer, computed=computed)) for layer in readings)
    (alert,) = alerts_of(RULES["over_regularized"], reports)
    assert alert.severity == ("info" if computed else "warning")


def test_a_few_steps_that_are_looked_at_closely_do_not_count_as_moving() -> None:
    """They go to and fro, and the way of many is shorter than they suggest."""
    readings = [reading(9980), *(over(9980 + 20 * k, moved=0.02) for k in range(1, 3))]
    close = [over(step, moved=0.05, extra=True) for step in range(10021, 10023)]
    (alert,) = alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in [*readings, *close]))
    assert alert.severity == "info"


@pytest.mark.parametrize(
    ("begins", "norm", "says"),
    [
        (11, 8.6, ""),
        (11, 8.0, "the layer's norm has fallen to 0.80 of that at step "),
        (100, 8.0, ""),  # a part of decay that is as slow comes with every long training
        (100, 5.0, "the layer's norm has fallen to 0.50 of that at step "),
    ],
)
def test_over_regularised_where_the_layer_decays_is_a_warning(begins: int, norm: float, says: str) -> None:
    good = [reading(step, measures={"frobenius_norm": 10.0}) for step in range(1, 11)]
    heavy = [over(step, moved=0.01) for step in range(begins, begins + 4)]
    small = [replace(each, measures={**each.measures, "frobenius_norm": norm, "erg_gap": -9.0}) for each in heavy]
    (alert,) = alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in [*good, *small]))
    assert alert.severity == ("warning" if says else "info")
    assert (says or "the layer neither shrinks nor moves far, and may be healthy") in alert.message


def test_a_layer_that_shrinks_after_it_has_grown_by_as_much_is_a_notice() -> None:
    """As after the top of one cycle, when a high learning rate has made it larger than at the start."""
    norms = [10.0, *[20.0] * 10, *[14.0] * 4]
    layers = [(reading if step < 11 else over)(step, moved=0.01) for step in range(len(norms))]
    sized = [
        replace(each, measures={**each.measures, "frobenius_norm": norm, "erg_gap": -9.0})
        for each, norm in zip(layers, norms, strict=True)
    ]
    (alert,) = alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in sized))
    assert alert.severity == "info"


def test_a_border_makes_no_flapping() -> None:
    """What takes 2 to begin takes more than 2.1 to end, though `alpha_is_meaningful` comes and goes."""
    values = [3.0, 1.5, 1.5, 1.5, 1.95, 2.05, 1.95, 2.05, 2.05, 2.05, 2.05, 1.5]
    readings = [
        replace(over(step), measures={**over(step).measures, "alpha": alpha}, alpha_is_meaningful=alpha < 1.9)
        for step, alpha in enumerate(values, start=1)
    ]
    assert steps(alerts_of(RULES["over_regularized"], (report(layer.step, layer) for layer in readings))) == [
        (4, "firing")
    ]


def test_a_layer_that_came_collapsed_is_a_notice_until_it_loses_more() -> None:
    """From a checkpoint, say. What is a notice and becomes worse is announced again, once that has persisted."""
    came = [collapsed(step) for step in range(1, 6)]
    worse = [replace(collapsed(step), measures={"hard_rank": 30.0}) for step in range(6, 10)]
    alerts = alerts_of(RULES["rank_collapse"], (report(layer.step, layer) for layer in came + worse))
    assert [(alert.step, alert.severity, alert.since) for alert in alerts] == [(3, "info", 1), (8, "error", 6)]


def test_a_layer_that_fills_up_from_zero_is_not_collapsed() -> None:
    """Its first weights are a few gradients, of low rank."""
    rising = [replace(collapsed(step), measures={"hard_rank": 20.0 + step}) for step in range(1, 30)]
    assert alerts_of(RULES["rank_collapse"], (report(layer.step, layer) for layer in rising)) == []


def test_an_adapter_that_outweighs_its_base_is_a_notice() -> None:
    """Above 1 in three readings, until it is at most 0.8; of a base that has learned nothing it says nothing."""

    def of(*ratios: float, base: Phase = Phase.BULK_DECAY) -> list[tuple[int, str, str]]:
        reports = [
            report(
                step,
                reading(step, "fc1", phase=base),
                reading(step, "fc1/lora.a", view="lora-delta", measures={"base_ratio": ratio}),
            )
            for step, ratio in enumerate(ratios, start=1)
        ]
        alerts = alerts_of(RULES["adapter_growth"], reports)
        assert all(alert.layers == ("fc1/lora.a",) for alert in alerts)
        return [(alert.step, alert.state, alert.severity) for alert in alerts]

    assert of(0.2, 0.9, 1.0, 1.0, 1.0) == of(0.2, 1.1, 1.1, 0.9, 1.1) == []
    assert of(0.2, 1.1, 1.2, 1.3, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8) == [(4, "firing", "info"), (10, "resolved", "info")]
    assert of(0.2, 1.1, 1.2, 1.3, base=Phase.RANDOM_LIKE) == []
    assert of(0.2, math.nan, math.nan, math.nan) == []
