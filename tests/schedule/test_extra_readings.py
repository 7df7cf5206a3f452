"""Readings between the scheduled ones."""

import math

import pytest

from esdmon.schedule.extra_readings import MAX_EXTRA, READINGS_PER_INTERVAL, ExtraReadings
from esdmon.schedule.jumps import JumpDetector
from esdmon.schedule.step_sample import StepSample


def scheduled(gap: int) -> ExtraReadings:
    extra = ExtraReadings()
    for step in (gap, 2 * gap):
        extra.scheduled(step)
    return extra


def test_a_layer_with_an_unconfirmed_finding_is_read_ten_times_as_often() -> None:
    extra = scheduled(200)
    extra.request({"fc1"}, 400)
    due = [step for step in range(401, 500) if extra.due(step)]
    assert due == [420, 440, 460, 480]
    extra.request((), 480)
    assert not any(extra.due(step) for step in range(481, 600))


def test_a_jump_is_read_at_once_and_then_more_often() -> None:
    extra = scheduled(200)
    extra.bring_forward(["fc1"], 437)
    assert extra.due(437) == ("fc1",)
    assert extra.due(438) == ()
    assert extra.is_next(457)
    assert extra.due(457) == ("fc1",)


def test_where_steps_are_scheduled_densely_nothing_is_added() -> None:
    for extra in (ExtraReadings(), scheduled(READINGS_PER_INTERVAL - 1)):
        extra.request({"fc1"}, 20)
        assert extra.interval is None
        assert not any(extra.due(step) for step in range(20, 200))


def test_a_finding_that_comes_and_goes_does_not_keep_the_denser_cadence() -> None:
    extra = scheduled(200)
    extra.request({"fc1"}, 400)
    due = 0
    for step in range(401, 3000):
        due += bool(extra.due(step))
        extra.request({"fc1"}, step) if extra.is_next(step) else None
    assert due == MAX_EXTRA
    extra.release(["fc1"])
    extra.bring_forward(["fc1"], 3000)
    assert extra.due(3000) == ("fc1",)


def test_it_goes_on_from_its_state() -> None:
    extra, other = scheduled(200), ExtraReadings()
    extra.request({"fc1"}, 400)
    extra.due(420)
    other.prepare(extra.state_dict())()
    assert other.state_dict() == extra.state_dict()
    assert [step for step in range(421, 500) if other.due(step)] == [440, 460, 480]


def samples(ratio: float, norm: float = 1.0) -> dict[str, StepSample]:
    return {"fc1": StepSample(norm, ratio)}


def test_a_jump_is_far_beyond_the_recent_samples() -> None:
    jumps = JumpDetector()
    assert jumps.take(samples(1.0)) == []  # nothing is known yet
    for k in range(20):
        assert jumps.take(samples(1e-3 * (1 + k % 2), 1 + 1e-3 * k)) == []
    assert jumps.take(samples(5e-3, 1.02)) == []  # 1.0 is still among the last sixteen
    for k in range(20):
        jumps.take(samples(1e-3 * (1 + k % 2), 1.02))
    assert jumps.take(samples(7e-3, 1.02)) == ["fc1"]
    assert jumps.take(samples(7e-3, 1.02)) == []  # it is one of the recent ones now
    assert jumps.take(samples(7e-3, 0.9)) == ["fc1"]  # the norm jumps
    assert jumps.take(samples(0.0, 0.9)) == ["fc1"]  # it stands still
    assert jumps.take(samples(0.0, 0.9)) == []


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_any_more_jumps(norm: float) -> None:
    """Once, and also where only two samples are known: comparisons with NaN are false, so no other limit finds it."""
    jumps = JumpDetector()
    assert jumps.take(samples(1e-3)) == []
    assert jumps.take(samples(math.nan, norm)) == ["fc1"]
    assert jumps.take(samples(math.nan, norm)) == []


def test_a_weight_that_is_replaced_between_samples_jumps() -> None:
    """Farther than half of its norm, and far beyond its usual way."""
    for usual, shift, expected in ((0.01, 0.6, ["fc1"]), (0.01, 0.4, []), (0.3, 0.6, []), (0.3, 1.4, ["fc1"])):
        jumps = JumpDetector()
        for _ in range(10):
            jumps.take({"fc1": StepSample(1.0, 1e-3, 0.0, usual)})
        assert jumps.take({"fc1": StepSample(1.0, 1e-3, 0.0, shift)}) == expected


def test_a_weight_that_is_set_back_to_its_start_jumps() -> None:
    """Where its distance from there falls by more than its usual moves, and a fiftieth."""
    for usual, way, expected in ((0.005, 0.0, ["fc1"]), (0.05, 0.0, []), (0.005, 0.09, [])):
        jumps, other = JumpDetector(), JumpDetector()
        for _ in range(10):
            jumps.take({"fc1": StepSample(1.0, 1e-3, 0.0, usual, 0.1)})
        other.prepare(jumps.state_dict())()
        for each in (jumps, other):
            assert each.take({"fc1": StepSample(1.0, 1e-3, 0.0, usual, way)}) == expected


def test_jumps_go_on_from_their_state() -> None:
    jumps, other = JumpDetector(), JumpDetector()
    for _ in range(10):
        jumps.take(samples(1e-3))
    other.prepare(jumps.state_dict())()
    assert other.take(samples(1e-2)) == ["fc1"]


def test_where_one_weight_is_replaced_all_are_read() -> None:
    """What a jumping step or norm concerns is that layer alone."""
    for shift, ratio, expected in ((0.9, 1e-3, ["fc1", "fc2"]), (0.01, 7e-3, ["fc2"]), (0.01, 1e-3, [])):
        jumps = JumpDetector()
        for _ in range(10):
            jumps.take({name: StepSample(1.0, 1e-3, 0.0, 0.01) for name in ("fc1", "fc2")})
        assert (
            jumps.take({"fc1": StepSample(1.0, 1e-3, 0.0, 0.01), "fc2": StepSample(1.0, ratio, 0.0, shift)}) == expected
        )
