"""Rules on how weights move: surges of steps, weights that are replaced, decay."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from esdmon.alerts import BUILT_IN_RULES
from esdmon.records import LayerReport, Report
from tests.alerts.histories import RULES, alerts_of, reading, report, steps


def test_a_step_of_decay_is_no_surge() -> None:
    """It shortens the weight; one of a grown gradient turns it."""
    for growth, expected in ((-0.009, []), (-0.002, [(13, "firing")])):
        faulty = [reading(step, step_ratio=0.01, step_growth=growth) for step in range(11, 14)]
        readings = [*map(reading, range(1, 11)), *faulty]
        assert steps(alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in readings))) == expected


def test_a_learning_rate_that_is_restarted_is_no_surge() -> None:
    """Unless it, or the step, is larger than any before."""
    rates = [*[0.1] * 4, *[0.01] * 14]

    def readings(rate: float, ratio: float) -> list[LayerReport]:
        before = [reading(step, step_ratio=0.05 * each, learning_rate=each) for step, each in enumerate(rates, start=1)]
        return before + [reading(step, step_ratio=ratio, learning_rate=rate) for step in range(19, 22)]

    for rate, ratio, expected in ((0.1, 0.005, 0), (0.1, 0.01, 1), (0.3, 0.006, 1), (0.01, 0.005, 1)):
        alerts = alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in readings(rate, ratio)))
        assert len(alerts) == expected, (rate, ratio)


@pytest.mark.parametrize(("steady", "expected"), [(12, [(23, "firing")]), (1, [])], ids=["mid-run", "from-the-start"])
def test_a_learning_rate_that_rises_slowly(steady: int, expected: list[tuple[int, str]]) -> None:
    """Steps are compared with those from before; where the run begins with the rise, none are known."""
    rates = [0.1 * 1.2 ** max(0, step - steady) for step in range(32)]
    readings = [reading(step, step_ratio=0.01 * rate, learning_rate=rate) for step, rate in enumerate(rates, start=1)]
    assert steps(alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in readings))) == expected


def test_a_gradient_that_jumps_from_almost_nothing_is_no_surge() -> None:
    """Up to a tenth of the largest step so far, unless the learning rate was raised."""
    ratios = [*[0.02] * 4, *[1e-4] * 14]
    before = [reading(step, step_ratio=each, learning_rate=0.1) for step, each in enumerate(ratios, start=1)]
    for rate, ratio, expected in ((0.1, 0.0015, 0), (0.1, 0.0025, 1), (0.2, 0.0015, 1)):
        faulty = [reading(step, step_ratio=ratio, learning_rate=rate) for step in range(19, 22)]
        alerts = alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in [*before, *faulty]))
        assert len(alerts) == expected, (rate, ratio)


def test_a_layer_that_begins_to_learn_after_the_others_is_no_surge() -> None:
    """As an expert to which nothing was routed; its steps have no usual length. If the others surge too, it is one."""

    def reports(usual: float, ratio: float, others: float) -> list[Report]:
        steps = [(step, usual, 0.001) for step in range(1, 11)] + [(step, ratio, others) for step in range(11, 14)]
        return [
            report(step, reading(step, step_ratio=own), *(reading(step, name, step_ratio=other) for name in ("b", "c")))
            for step, own, other in steps
        ]

    for usual, ratio, others, expected in (
        (1e-5, 0.002, 0.001, ()),
        (2e-4, 0.002, 0.001, ("fc1",)),
        (2e-4, 0.02, 0.01, ("fc1", "b", "c")),
    ):
        alerts = alerts_of(RULES["update_surge"], reports(usual, ratio, others))
        assert tuple(layer for alert in alerts for layer in alert.layers) == expected


def test_extra_readings_of_one_layer_find_the_surge_that_the_others_have_too() -> None:
    """The last steps of those that are not read are as long: what counts is how far steps moved them before."""
    names = ("fc1", "fc2", "fc3")
    before = [report(10 * s, *(reading(10 * s, name, learning_rate=0.1) for name in names)) for s in range(1, 20)]
    surge = [report(200, *(reading(200, name, step_ratio=0.08, learning_rate=0.1) for name in names))]
    for s in (201, 202):
        first = reading(s, "fc1", step_ratio=0.07, learning_rate=0.1, extra=True)
        surge.append(replace(report(s, first, *surge[0].layers[1:]), extra=True))
    (alert,) = alerts_of(RULES["update_surge"], before + surge)
    assert (alert.layer, alert.since, alert.step) == ("fc1", 200, 202)


@pytest.mark.parametrize(
    ("rank", "growth", "scale", "expected"),
    [(20.0, 0.0, 1.0, 1), (25.0, 0.0, 1.0, 0), (25.0, -0.0009, 1.0, 1), (25.0, 0.0, 0.7, 1)],
    ids=["as-many-directions", "unlearns", "steps-that-shorten", "below-the-first"],
)
def test_a_layer_that_unlearns_does_not_decay(rank: float, growth: float, scale: float, expected: int) -> None:
    """Its stable rank rises, since the learned directions shrink first; no step shortens it."""
    before = [reading(step, measures={"frobenius_norm": 8.0 if step == 1 else 10.0}) for step in range(1, 11)]
    faulty = [
        reading(
            step, step_growth=growth, measures={"frobenius_norm": scale * 9 * 0.97 ** (step - 11), "stable_rank": rank}
        )
        for step in range(11, 14)
    ]
    assert len(alerts_of(RULES["norm_decay"], (report(layer.step, layer) for layer in [*before, *faulty]))) == expected


def test_a_norm_that_falls_once_does_not_decay() -> None:
    """As where an earlier checkpoint was loaded; one that comes to rest after two falls does."""
    for norms, expected in (([8.0, 8.0, 8.0, 8.0], 0), ([8.0, 6.0, 6.0, 6.0], 1)):
        faulty = [reading(step, measures={"frobenius_norm": norm}) for step, norm in enumerate(norms, start=11)]
        readings = [*map(reading, range(1, 11)), *faulty]
        assert len(alerts_of(RULES["norm_decay"], (report(layer.step, layer) for layer in readings))) == expected


@pytest.mark.parametrize(
    ("decay", "growth", "first", "severity"),
    [
        (0.0, 0.0, 11.0, "info"),
        (0.1, 0.0, 11.0, "warning"),
        (0.0, -0.0009, 11.0, "warning"),
        (0.0, 0.0, 9.0, "warning"),
    ],
    ids=["too-large-at-first", "decay", "penalty", "grown-by-training"],
)
def test_initial_weights_that_are_too_large_are_a_notice(
    decay: float, growth: float, first: float, severity: str
) -> None:
    """They fall without decay or penalty."""
    norms = [first, *[10.0] * 9, 9.0, 8.7, 8.4]
    readings = [
        reading(step, weight_decay=decay, step_growth=growth, measures={"frobenius_norm": norm})
        for step, norm in enumerate(norms, start=1)
    ]
    (alert,) = alerts_of(RULES["norm_decay"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == severity
    assert ("weight decay is 0: the loss, a penalty in it, or the script itself" in alert.message) == (decay == 0)


def test_larger_gradients_of_a_weight_that_has_shrunk_are_no_surge() -> None:
    """They balance its decay; a raised learning rate is one all the same."""
    for norm, rate, expected in ((10.0, 0.1, 1), (8.0, 0.1, 0), (8.0, 0.3, 1)):
        before = [reading(step, learning_rate=0.1) for step in range(1, 11)]
        faulty = [
            reading(step, step_ratio=0.01, learning_rate=rate, measures={"frobenius_norm": norm})
            for step in range(11, 14)
        ]
        alerts = alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in [*before, *faulty]))
        assert len(alerts) == expected, (norm, rate)


def test_a_layer_that_is_set_back_to_its_start_is_reset() -> None:
    """Not one that moves about as far as it usually does, nor one that comes back by less than a fifth of its way."""
    for way, usual, expected in ((0.01, 0.02, 1), (0.35, 0.02, 0), (0.01, 0.3, 0), (0.45, 0.02, 0)):
        before = [reading(step, start_ratio=0.4, moved=usual) for step in range(1, 11)]
        readings = [*before, reading(11, start_ratio=way, moved=0.4, step_ratio=0.02)]
        alerts = alerts_of(RULES["layer_reset"], (report(layer.step, layer) for layer in readings))
        assert len(alerts) == expected, (way, usual)


def test_a_checkpoint_of_all_layers_is_a_notice_whichever_way_they_move() -> None:
    """One comes back, the other goes away from its start; where the other moves by steps, it is a warning."""
    for moved, severity in ((0.3, "info"), (0.01, "warning")):
        reports = [
            report(step, reading(step, start_ratio=0.4), reading(step, "fc2", start_ratio=0.4)) for step in range(1, 11)
        ]
        other = reading(11, "fc2", start_ratio=0.5, moved=moved)
        reports.append(report(11, reading(11, start_ratio=0.1, moved=0.3), other))
        assert {alert.severity for alert in alerts_of(RULES["layer_reset"], reports)} == {severity}


def test_all_layers_at_once_are_another_checkpoint() -> None:
    """A notice; one layer of two is a warning."""
    for moved, severities in ((1.4, {"info"}), (0.01, {"warning"})):
        reports = [report(step, reading(step), reading(step, "fc2")) for step in range(1, 11)]
        reports.append(report(11, reading(11, moved=1.4), reading(11, "fc2", moved=moved)))
        assert {alert.severity for alert in alerts_of(RULES["layer_reset"], reports)} == severities


def test_a_small_weight_that_is_set_back_to_a_larger_value_is_no_reset() -> None:
    """As when the checkpoint before a fault is loaded."""
    small = [reading(step, measures={"frobenius_norm": 1.0}) for step in range(1, 11)]
    readings = [*small, reading(11, moved=9.5)]
    assert alerts_of(RULES["layer_reset"], (report(layer.step, layer) for layer in readings)) == []


def test_a_checkpoint_found_at_an_extra_reading_is_not_found_again_at_the_scheduled_one() -> None:
    """One layer comes back to its start, the other goes away from it; from then on both move by steps."""
    reports = [
        report(step, reading(step, start_ratio=0.4), reading(step, "fc2", start_ratio=0.4))
        for step in range(20, 220, 20)
    ]
    for step, back, away, moved in ((202, 0.1, 0.6, 0.3), (220, 0.11, 0.61, 0.01), (240, 0.12, 0.62, 0.01)):
        layers = (
            reading(step, name, start_ratio=way, moved=moved, extra=step == 202)
            for name, way in (("fc1", back), ("fc2", away))
        )
        reports.append(replace(report(step, *layers), extra=step == 202))
    alerts = alerts_of(RULES["layer_reset"], reports)
    assert [(alert.step, alert.severity, alert.layers) for alert in alerts] == [(202, "info", ("fc1",))]


def test_frozen_layers_do_not_make_a_checkpoint_a_part_of_one() -> None:
    """They keep their values when it is loaded; of a layer that moves by steps it is a part."""
    for moved, severity in ((0.0, "info"), (0.01, "warning")):
        names = ("fc1", "fc2")
        reports = [
            report(step, *map(partial(reading, step), names), reading(step, "fc3", moved=moved))
            for step in range(1, 11)
        ]
        jumped = (reading(11, name, moved=1.4) for name in names)
        reports.append(report(11, *jumped, reading(11, "fc3", moved=moved)))
        assert {alert.severity for alert in alerts_of(RULES["layer_reset"], reports)} == {severity}


def test_a_fast_move_between_readings_is_no_reset_where_steps_were_as_long_at_the_last_one() -> None:
    """Rows that are drawn to a point, the last reading of which was long ago: the steps have become short again."""
    for steps_before, expected in ((0.02, 0), (0.001, 1), (1.4, 1)):  # the last replaced the weight
        readings = [reading(step) for step in range(1, 11)]
        readings += [reading(12, step_ratio=steps_before), reading(72, moved=1.1)]
        alerts = alerts_of(RULES["layer_reset"], (report(layer.step, layer) for layer in readings))
        assert len(alerts) == expected, steps_before


@pytest.mark.parametrize("size", [2.0, 4.0, 10.0, 30.0])
@pytest.mark.parametrize(
    ("share", "step_ratio", "rule"),
    [(0.9, 0.001, "layer_reset"), (0.1, 0.001, "norm_explosion"), (0.9, 0.1, "norm_explosion")],
    ids=["noise", "a few directions", "steps reach as far"],
)
def test_a_weight_of_many_times_the_norm_is_new_if_it_is_noise_and_no_steps_lead_there(
    size: float, share: float, step_ratio: float, rule: str
) -> None:
    """A blow-up by gradients has few directions, and takes long steps."""
    noise = reading(1).nulls["stable_rank"]
    grown = {
        "frobenius_norm": 10 * size,
        "spectral_norm": 10 * size / math.sqrt(share * noise),
        "stable_rank": share * noise,
    }
    before = [reading(step, measures={"spectral_norm": 0.3, "frobenius_norm": 10.0}) for step in range(1, 201, 20)]
    moved = math.sqrt(size**2 + (1 if rule == "layer_reset" else -1))
    reports = [
        *before,
        reading(200, measures=grown, moved=moved, step_ratio=step_ratio),
        *(reading(step, measures=grown) for step in range(201, 205)),
    ]
    alerts = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in reports))
    assert [alert.rule for alert in alerts if alert.state == "firing"][:1] == [rule]
    assert {alert.rule for alert in alerts} == {rule}


@pytest.mark.parametrize(("spectral", "rank", "rule"), [(20.0, 1.6, "norm_explosion"), (8.0, 9.0, "layer_reset")])
def test_a_weight_of_few_directions_that_has_turned_as_it_blew_up_is_not_new(
    spectral: float, rank: float, rule: str
) -> None:
    """It has moved farther than it has grown, as one that was replaced by trained weights has."""
    grown = {"frobenius_norm": 20.0, "spectral_norm": spectral, "stable_rank": rank}
    later = [reading(step, measures=grown) for step in (12, 13)]
    readings = [*map(reading, range(1, 11)), reading(11, measures=grown, moved=2.3), *later]
    alerts = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [alert.rule for alert in alerts if alert.state == "firing"] == [rule]


def test_a_weight_that_blows_up_is_not_new_at_a_later_reading() -> None:
    """It then turns about in steps that no sample foresees, and is noise at last."""
    norms = {11: 20.0, 12: 1e3, 13: 1e5}
    readings = [
        *map(reading, range(1, 11)),
        *(
            reading(
                step,
                moved=(0.9 if step == 11 else 1.1) * norm / norms.get(step - 1, 10.0),
                step_ratio=0.01,
                measures={"spectral_norm": norm, "frobenius_norm": norm, "stable_rank": 1.0 if step < 13 else 39.0},
            )
            for step, norm in norms.items()
        ),
    ]
    alerts = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert [alert.rule for alert in alerts] == ["norm_explosion"]


def test_a_network_that_is_initialised_again_with_larger_values_is_a_warning() -> None:
    """Of the same size it may be another checkpoint."""
    for size, severity in ((1.0, "info"), (5.0, "warning")):
        new = {"frobenius_norm": 10 * size, "spectral_norm": 2 * size, "stable_rank": 39.0}
        reports = [report(step, reading(step), reading(step, "fc2")) for step in range(1, 11)]
        for step, moved in ((11, math.sqrt(1 + size**2)), (12, 0.01), (13, 0.01)):
            layers = (reading(step, name, moved=moved, measures=new) for name in ("fc1", "fc2"))
            reports.append(report(step, *layers))
        assert {(alert.rule, alert.severity) for alert in alerts_of(BUILT_IN_RULES, reports)} == {
            ("layer_reset", severity)
        }


@pytest.mark.parametrize(
    ("size", "step_ratio", "expected"), [(1.0, 1.41, 1), (5.0, 5.1, 1), (1.0, 1.0, 0), (1.0, 1.9, 0)]
)
def test_a_step_that_is_sampled_while_a_weight_is_replaced_is_none_of_training(
    size: float, step_ratio: float, expected: int
) -> None:
    """It goes to a weight that has nothing in common with the last; a long step of training turns a weight round."""
    new = {"frobenius_norm": 10 * size, "stable_rank": 39.0}
    way = math.sqrt(1 + size**2)
    readings = [*map(reading, range(1, 11)), reading(11, measures=new, moved=way, step_ratio=step_ratio)]
    readings[-1] = replace(readings[-1], step_growth=size - 1)
    assert len(alerts_of(RULES["layer_reset"], (report(layer.step, layer) for layer in readings))) == expected


@pytest.mark.parametrize(
    ("rule", "setting", "measures", "expected"),
    [
        ("norm_explosion", "learning_rate", {"spectral_norm": 40.0}, "; its learning rate rose from 0.01 to 1"),
        ("norm_decay", "weight_decay", {}, "; its weight decay rose from 0.01 to 1"),
        ("norm_decay", "weight_decay", {}, "; its weight decay rose from 0 to 1"),
    ],
)
def test_an_alert_says_whether_what_the_optimizer_does_to_the_layer_was_raised(
    rule: str, setting: str, measures: dict[str, float], expected: str
) -> None:
    """So the cause is in the message; where it was not raised, or is not known, no cause is named."""
    raised_from = float(expected.split()[-3])
    for before, now, is_raised in ((raised_from, 1.0, True), (1.0, 1.0, False), (math.nan, 1.0, False)):
        earlier: dict[str, Any] = {setting: before}
        later: dict[str, Any] = {setting: now}
        readings = [reading(step, **earlier) for step in range(1, 11)]
        for step, norm in ((11, 9.0), (12, 8.0), (13, 7.0)):
            readings.append(reading(step, measures=measures or {"frobenius_norm": norm}, **later))
        (alert,) = alerts_of(RULES[rule], (report(layer.step, layer) for layer in readings))
        assert (expected in alert.message) == is_raised
        assert ("rose" in alert.message) == is_raised
