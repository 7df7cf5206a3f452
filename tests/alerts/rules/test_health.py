"""Rules on NaN, weights that do not move, readings that fail or are old."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from esdmon.alerts import AlertManager
from esdmon.records import INACTIVE, Report
from tests.alerts.histories import RULES, alerts_of, reading, report, steps


def test_nan_is_reported_at_once_with_the_last_finite_step() -> None:
    """One reading is enough; the last good step is where to go back to."""
    bad = replace(reading(20), status="nonfinite", reason="3 of 9 elements are NaN or infinite")
    alerts = alerts_of(RULES["non_finite"], [report(10, reading(10)), report(20, bad), report(30, reading(30))])
    assert steps(alerts) == [(20, "firing"), (30, "resolved")]
    assert alerts[0].message.startswith(
        "fc1: non_finite: 3 of 9 elements are NaN or infinite (all finite at step 10), at step 20. Restore"
    )


def still(step: int, *, others: float = 0.01, since: int = 2, **fields: Any) -> Report:
    """A report in which one layer was read at a step and has not moved since, and another has."""
    dead = replace(reading(since, "dead", **fields), drift=0.0, emitted_step=step)
    return report(step, reading(step, moved=others), dead)


def steady(ratios: Sequence[float]) -> list[Report]:
    """Reports at steps 1, 2, 3 … in which two layers have moved; of one these are the sampled steps."""
    return [report(s, reading(s), reading(s, "dead", step_ratio=ratio)) for s, ratio in enumerate(ratios, start=1)]


def test_a_layer_that_stands_still_while_others_move_is_dead() -> None:
    """After five reports; it lives again with the first move."""
    reports = steady([0.001] * 10) + [still(step, since=10) for step in range(11, 20)]
    reports += [report(20, reading(20), reading(20, "dead"))]
    alerts = alerts_of(RULES["dead_layer"], reports)
    assert [(alert.step, alert.state, alert.layer) for alert in alerts] == [
        (15, "firing", "dead"),
        (20, "resolved", "dead"),
    ]
    assert (
        "the weight does not move (‖ΔW‖/‖W‖ is 0), while other layers move, although the optimizer holds it, "
        "in 5 checks since step 11" in alerts[0].message
    )


@pytest.mark.parametrize("ratios", [[0.001] * 5 + [0.0] + [0.001] * 6, [math.nan] * 12, [0.001] * 4], ids=str)
def test_a_layer_that_may_be_idle_at_times_stands_still_for_longer(ratios: list[float]) -> None:
    """An expert that no token reaches for some steps is not dead; these checks may be steps apart."""
    last = len(ratios)
    for count, expected in ((7, []), (12, [(last + 8, "firing")])):
        reports = steady(ratios) + [still(last + k, since=last) for k in range(1, count + 1)]
        assert steps(alerts_of(RULES["dead_layer"], reports)) == expected


def test_a_layer_that_is_trained_in_turn_with_others_must_stand_still_for_longer_than_before() -> None:
    """As the head of a task that is trained every other hundred steps: the first pause looks like a fault."""

    def turns(*pauses: int) -> list[tuple[int, str]]:
        """Return the alerts where a layer moves for twelve reports before and after each pause."""
        series, since = steady([0.001] * 12), 12
        for pause in pauses:
            series += [still(step, since=since) for step in range(since + 1, since + pause + 1)]
            since += pause + 12
            series += [report(step, reading(step), reading(step, "dead")) for step in range(since - 11, since + 1)]
        return steps(alerts_of(RULES["dead_layer"], series))

    assert turns(6, 6, 6, 5) == [(17, "firing"), (19, "resolved")]
    assert turns(6, 6, 12) == [(17, "firing"), (19, "resolved"), (59, "firing"), (61, "resolved")]


def test_a_layer_that_has_never_paused_is_dead_after_five_extra_readings() -> None:
    """Before the next scheduled report, which counts how long a layer pauses."""
    extra = [report(step, reading(step), reading(step, "dead", moved=0.0)) for step in range(11, 20)]
    reports = steady([0.001] * 10) + [replace(each, extra=True) for each in extra]
    assert steps(alerts_of(RULES["dead_layer"], reports)) == [(15, "firing")]


def test_a_dead_layer_that_moves_a_little_is_still_dead() -> None:
    """The less often it is read, the farther has it moved by then."""
    reports = steady([0.001] * 10) + [still(step, since=10) for step in range(11, 20)]
    reports += [report(20, reading(20), reading(20, "dead", moved=2e-6))]
    assert steps(alerts_of(RULES["dead_layer"], reports)) == [(15, "firing")]


def both(step: int, moved: float, rate: float = 0.01, decay: float = 0.0) -> Report:
    layers = (reading(step, n, moved=moved, learning_rate=rate, weight_decay=decay) for n in ("fc1", "fc2"))
    return report(step, *layers)


def test_layers_that_all_stop_at_once_are_dead() -> None:
    """As when all units of a layer are dead, and only the biases of the last one still move."""
    moving, stopped = [both(s, 0.01) for s in range(1, 11)], [both(s, 0.0) for s in range(11, 60)]
    (alert,) = alerts_of(RULES["dead_layer"], moving + stopped)
    assert (alert.layers, alert.severity, alert.since, alert.step) == (("fc1", "fc2"), "warning", 11, 15)
    assert (
        "the weight does not move (‖ΔW‖/‖W‖ is 0), while no layer moves any more, although the optimizer holds it (fc1)"
        in alert.message
    )
    (_, resolved) = alerts_of(RULES["dead_layer"], moving + stopped + [both(60, 0.01)])
    assert (resolved.state, resolved.step) == ("resolved", 60)


def test_layers_that_all_stop_at_once_under_an_optimizer_of_whole_batches_are_a_notice() -> None:
    """LBFGS, which has no setting of weight decay, has converged, or its line search finds no step."""
    reports = [both(s, 0.01 * (s < 11), decay=math.nan) for s in range(1, 60)]
    (alert,) = alerts_of(RULES["dead_layer"], reports)
    assert (alert.layers, alert.severity, alert.step) == (("fc1", "fc2"), "info", 15)
    assert "an optimizer of whole batches, such as LBFGS, stops so when it has converged" in alert.message


@pytest.mark.parametrize(
    ("moves", "rate"),
    [([0.01 * 0.75**k for k in range(60)], 0.01), ([0.0] * 60, 0.0), ([0.0] * 60, math.nan), ([0.0] * 60, 1e-4)],
    ids=["slowly", "no-rate", "rate-not-known", "lowered-rate"],
)
def test_layers_that_have_converged_are_not_dead(moves: list[float], rate: float) -> None:
    reports = [both(s, 0.01) for s in range(1, 11)]
    assert alerts_of(RULES["dead_layer"], reports + [both(s, moved, rate) for s, moved in enumerate(moves, 11)]) == []


@pytest.mark.parametrize(
    ("fields", "count"), [({}, 1), ({"drift": 0.1}, 0), ({"in_optimizer": False}, 0), ({"reason": "empty"}, 0)], ids=str
)
def test_an_adapter_that_stays_zero_is_a_notice(fields: dict[str, Any], count: int) -> None:
    """Frozen by mistake, or not reached by the loss; its factor is zero at the start, and moves at the first step."""
    zero = reading(1, "fc2/lora", view="lora-delta", status="skipped", reason=INACTIVE, trainable=False)
    later = [report(s, reading(s), replace(zero, **({"drift": 0.0} | fields))) for s in range(2, 10)]
    alerts = alerts_of(RULES["dead_layer"], [report(1, reading(1), zero), *later])
    assert [(alert.layer, alert.severity, alert.step) for alert in alerts] == [("fc2/lora", "info", 6)] * count
    assert all("one of its factors is zero and does not move, while other layers move" in a.message for a in alerts)


def decaying(step: int, *, ratio: float = 1e-4, growth: float = -1e-4, **fields: Any) -> Report:
    """A report, every 50 steps, in which one layer is read that has moved by its steps alone, and another."""
    now = {"step_ratio": ratio, "step_growth": growth, "moved": 50 * ratio, "weight_decay": 0.1} | fields
    return report(step, reading(step), reading(step, "dead", **now))


def test_a_layer_that_weight_decay_alone_moves_is_dead() -> None:
    """Its gradient is zero, but AdamW shrinks it. It lives again with the first step of a gradient."""
    reports = [decaying(step) for step in range(50, 501, 50)]
    alerts = alerts_of(RULES["dead_layer"], [*reports, decaying(550, ratio=1e-3, growth=-1e-4)])
    assert [(alert.step, alert.state, alert.layer, alert.severity) for alert in alerts] == [
        (300, "firing", "dead", "warning"),
        (550, "resolved", "dead", "info"),
    ]
    assert (
        "weight decay alone moves the weight, by 0.0001 of its norm at each step, while gradients move other layers, "
        "in 5 checks since step 100" in alerts[0].message
    )


@pytest.mark.parametrize(("shrinks", "count"), [(True, 1), (False, 0)])
def test_a_layer_whose_decay_lookahead_takes_back_in_part_is_dead(*, shrinks: bool, count: int) -> None:
    """The sampled steps may all be those that take back. A weight that grows by them is moved by gradients."""
    reports = []
    for step in range(50, 501, 50):
        (other, dead) = decaying(step, growth=1e-4, moved=1e-3)
        norm = 10.0 - 1e-3 * step if shrinks else 10.0 + 1e-3 * step
        reports.append(report(step, other, replace(dead, measures={**dead.measures, "frobenius_norm": norm})))
    assert [alert.layer for alert in alerts_of(RULES["dead_layer"], reports)] == ["dead"] * count


@pytest.mark.parametrize(
    "fields",
    [
        {"growth": -0.9e-4},
        {"moved": 0.02},
        {"weight_decay": 0.0},
        {"in_optimizer": False},
        {"growth": math.nan},
        {"status": "degenerate"},
    ],
    ids=["a-gradient-too", "other-steps-between", "no-decay", "not-in-optimizer", "not-sampled", "zero"],
)
def test_a_layer_that_gradients_move_or_whose_moves_are_unknown_is_not_dead(fields: dict[str, Any]) -> None:
    """A step that turns the weight, a move that decay does not reach, a script that scales the weight."""
    assert alerts_of(RULES["dead_layer"], (decaying(step, **fields) for step in range(50, 1001, 50))) == []


def test_a_layer_whose_weight_decay_was_raised_is_not_dead() -> None:
    """The decay outweighs a gradient as large as before, which `norm_decay` reports."""
    before = [report(s, reading(s), reading(s, "dead", weight_decay=0.001)) for s in range(50, 1001, 50)]
    assert alerts_of(RULES["dead_layer"], before + [decaying(s) for s in range(1050, 2001, 50)]) == []


@pytest.mark.parametrize(("growth", "count"), [(-0.9e-4, 0), (-0.4e-4, 1)], ids=["converged", "gradients"])
def test_a_layer_that_decays_is_dead_only_where_gradients_move_another(growth: float, count: int) -> None:
    """Where the loss has almost vanished, as of an easy first task, decay moves all layers for the most part."""
    reports = [
        report(
            step,
            *(
                reading(step, name, step_ratio=1e-4, step_growth=by, moved=5e-3, weight_decay=0.1)
                for name, by in growths
            ),
        )
        for step, growths in ((step, (("fc1", -1e-4), ("head", growth))) for step in range(50, 1001, 50))
    ]
    assert [alert.layer for alert in alerts_of(RULES["dead_layer"], reports)] == ["fc1"] * count


def test_layers_that_all_decay_are_not_dead() -> None:
    """Where decay outweighs all gradients, as when all are zero or decay is far too strong, `norm_decay` says so."""
    fields: dict[str, Any] = {"step_ratio": 1e-4, "step_growth": -1e-4, "moved": 5e-3, "weight_decay": 0.1}
    all_decay = (report(s, reading(s, **fields), reading(s, "fc2", **fields)) for s in range(50, 1001, 50))
    assert alerts_of(RULES["dead_layer"], all_decay) == []


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
def test_a_layer_that_is_meant_to_stand_still_raises_no_warning(fields: dict[str, Any], severity: str | None) -> None:
    """Frozen in the optimizer is a notice; a warm-up from learning rate zero, a LoRA B that is zero are nothing."""
    alerts = alerts_of(
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
    fired, resolved = alerts_of(rule, failing)
    assert (fired.layer, fired.severity, fired.step) == ("fc2", "warning", 3)
    assert fired.message.startswith("fc2: reading_failed: its reading failed: LinAlgError")
    assert (resolved.state, resolved.step) == ("resolved", 6)
    for status in ("skipped", "degenerate", "nonfinite"):
        assert alerts_of(rule, (report(step, reading(step, status=status)) for step in range(1, 9))) == []


def test_a_monitor_that_reads_nothing_says_so_once() -> None:
    """All layers fail: it is the monitor that is blind, and one alert says so."""
    blind = [
        report(step, *(reading(step, name, status="failed", reason="RuntimeError: TF32") for name in ("fc1", "fc2")))
        for step in range(1, 9)
    ]
    (alert,) = alerts_of(RULES["reading_failed"], blind)
    assert (alert.layer, alert.step) == ("", 3)
    assert "the reading of every layer failed: RuntimeError: TF32" in alert.message


def test_rules_may_look_back_as_far_as_their_threshold_says() -> None:
    """500 due steps: further than what is remembered where no rule asks for it."""
    rule = replace(RULES["stale_monitor"], find=partial(RULES["stale_monitor"].find, due_steps=500))
    old = [report(step, reading(step), reading(min(step, 9), "old", emitted_step=step)) for step in range(1, 600)]
    (alert,) = alerts_of(rule, old)
    assert (alert.since, alert.step) == (509, 511)


def test_an_alert_ends_in_a_layer_that_has_not_moved_since_it_was_resumed() -> None:
    """Its weights were not finite when the state was saved, and are good again: there is no reading that moved."""
    (alert, *_) = alerts_of(RULES["non_finite"], [report(1, reading(1, status="nonfinite", moved=math.nan))])
    assert alert.rule == "non_finite"
    manager = AlertManager([RULES["non_finite"]])
    manager.take(report(1, reading(1, status="nonfinite", moved=0.0)), time=0.0)
    resumed = AlertManager([RULES["non_finite"]])
    resumed.prepare(manager.state_dict())()
    (ended,) = resumed.take(report(2, reading(2, moved=0.0)), time=0.0)
    assert ended.state == "resolved"


def test_a_monitor_that_cannot_keep_up_says_so() -> None:
    """Fifty due steps without a reading of a layer that has moved; one that has not is as good as read."""
    fresh = [report(step, reading(step), reading(min(step, 9), "old")) for step in range(1, 70)]
    fired = alerts_of(RULES["stale_monitor"], fresh)
    assert steps(fired) == [(61, "firing")]
    assert fired[0].message.startswith("stale_monitor: no reading of old for 50 due steps, since step 11 or earlier")
    assert fired[0].layers == ()
    unchanged = [report(s, reading(s), replace(reading(1, "old"), unchanged=True)) for s in range(1, 60)]
    assert alerts_of(RULES["stale_monitor"], unchanged) == []
    waiting = [report(step, reading(step), waiting=["late"]) for step in range(1, 60)]
    assert "no reading of late for" in alerts_of(RULES["stale_monitor"], waiting)[0].message


def test_a_monitor_that_reads_too_seldom_for_a_baseline_says_so() -> None:
    """In 18 due steps fewer than nine readings of a layer that moves, and resolved with the ninth."""
    seldom = [report(s, reading(s), reading(s // 5 * 5, "b", moved=0.1), reading(1, "c")) for s in range(5, 60)]
    fired, resolved = alerts_of(
        RULES["stale_monitor"], [report(s, *each.layers[:2]) for s, each in enumerate(seldom, 5)]
    )
    assert (fired.since, fired.step, fired.state, fired.severity) == (22, 24, "firing", "info")
    assert (
        "stale_monitor: fewer than 9 readings of b so far, so that rules on change find nothing there" in fired.message
    )
    assert (resolved.state, resolved.step) == ("resolved", 45)
    (fired,) = alerts_of(RULES["stale_monitor"], seldom)
    assert "stale_monitor: fewer than 9 readings of b and 1 other so far" in fired.message
    for fields in ({"trainable": False}, {"unchanged": True}, {"status": "degenerate"}):
        rare = [report(s, reading(s), replace(reading(1, "b"), **fields)) for s in range(1, 40)]
        assert alerts_of(RULES["stale_monitor"], rare) == []
    thawed = [report(s, reading(s), reading(s, "b", moved=0.1 if s > 10 else 0.0)) for s in range(1, 60)]
    assert alerts_of(RULES["stale_monitor"], thawed) == []


def test_extra_reports_say_nothing_of_layers_that_are_not_read_in_them() -> None:
    """A layer was read at each due step; three extra readings of another one do not make it a layer read too seldom."""
    scheduled = [report(10 * s, reading(10 * s), reading(10 * s, "b")) for s in range(1, 31)]
    extra = [
        report(s, replace(reading(s), extra=True), replace(reading(300, "b"), emitted_step=s)) for s in range(301, 306)
    ]
    assert alerts_of(RULES["stale_monitor"], scheduled + [replace(each, extra=True) for each in extra]) == []


@pytest.mark.parametrize(("view", "count"), [("weight", 1), ("difference", 0)])
def test_rows_that_do_not_change_are_not_dead(view: str, count: int) -> None:
    """Of a difference the rows that are zero are those that equal the reference."""
    reports = [report(s, reading(s, view=view, measures={"zero_rows": 50.0 * (s > 1)})) for s in range(1, 6)]
    assert len(alerts_of(RULES["dead_units"], reports)) == count


def test_rows_that_die_are_counted_from_the_first_reading() -> None:
    """A tenth of all rows, in either orientation; those that were dead at the start, and columns, raise nothing."""

    def of(*dead: float, shape: tuple[int, int]) -> list[tuple[int, str]]:
        rows, columns = shape
        layers = []
        for step, count in enumerate(dead, start=1):
            left, gone = rows - int(count), int(count)
            sides: dict[str, Any] = {"N": max(left, columns), "M": min(left, columns), "n_parameters": rows * columns}
            layers.append(reading(step, measures={"zero_rows": count}, dead_rows=gone, **sides))
        return steps(alerts_of(RULES["dead_units"], [report(layer.step, layer) for layer in layers]))

    wide, tall = (100, 200), (200, 100)
    assert of(0, 8, 9, 10, 10, shape=wide) == []
    assert of(0, 11, 11, 11, 11, shape=wide) == [(4, "firing")]
    assert of(0, 11, 11, 11, 11, shape=tall) == []
    assert of(0, 21, 21, 21, 4, 4, 4, 4, shape=tall) == [(4, "firing"), (7, "resolved")]
    assert of(30, 30, 30, 30, 30, shape=wide) == []


@pytest.mark.parametrize(
    ("computed", "weak", "severity"), [(True, 0, "info"), (True, 30, "warning"), (False, 0, "warning")], ids=str
)
def test_rows_that_a_mask_makes_zero_are_a_notice(*, computed: bool, weak: int, severity: str) -> None:
    """As by `prune.ln_structured`, which computes the weight. Rows that die in such a weight are weak at first."""
    measures = [{"zero_rows": 0, "weak_rows": weak * (k == 10)} for k in range(1, 11)] + [{"zero_rows": 30}] * 20
    layers = [reading(k, computed=computed, measures=each) for k, each in enumerate(measures, start=1)]
    alerts = alerts_of(RULES["dead_units"], (report(layer.step, layer) for layer in layers))
    assert [(alert.step, alert.severity) for alert in alerts] == [(13, severity)]
    assert ("as by a mask" in alerts[0].message) == (severity == "info")
