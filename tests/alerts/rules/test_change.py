"""Rules on change: jumps, slow changes, and what is neither."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esdmon import analyze
from esdmon.alerts import BUILT_IN_RULES
from esdmon.spectrum import Phase
from tests.alerts.histories import RULES, alerts_of, reading, report, series, steps


def test_a_trap_that_was_there_from_the_start_is_the_layers_own() -> None:
    """Embeddings of large models have them."""
    assert series("correlation_trap", "trap", [2.0] * 20) == []
    assert series("correlation_trap", "trap", [1.1] * 9 + [1.6] * 9) == []
    assert series("correlation_trap", "trap", [0.5] * 9 + [1.8] * 3 + [1.3] * 9) == [(12, "firing")]


@pytest.mark.parametrize(
    ("values", "severity"),
    [([0.5] * 10 + [2.0] * 10, "warning"), (np.linspace(0.5, 2.0, 40), "info")],
    ids=["jump", "slow"],
)
def test_a_trap_that_comes_slowly_is_a_notice(values: Any, severity: str) -> None:
    """Healthy networks make them too."""
    readings = [reading(step, measures={"trap": value}) for step, value in enumerate(values, start=1)]
    (alert,) = alerts_of(RULES["correlation_trap"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == severity


@pytest.mark.parametrize(("idle", "is_local", "severity"), [(0, 0, "warning"), (1, 0, "info"), (1, 1, "warning")])
def test_a_mean_of_a_layer_that_is_idle_at_times_is_a_notice(idle: int, is_local: int, severity: str) -> None:
    """It begins to learn after the others, as an expert to which few tokens are routed; huge elements do not."""
    before = [reading(step, step_ratio=0.001 * (step > idle), measures={"trap": 0.3}) for step in range(1, 11)]
    after = {"trap": 2.0, "trap_is_local": float(is_local)}
    readings = before + [reading(step, measures=after) for step in range(11, 15)]
    (alert,) = alerts_of(RULES["correlation_trap"], (report(layer.step, layer) for layer in readings))
    assert alert.severity == severity


JUMPS = {
    "stable_rank_drop": ("stable_rank", 20.0, 6.0),
    "entropy_collapse": ("matrix_entropy", 0.9, 0.65),
    "norm_explosion": ("spectral_norm", 4.0, 20.0),
}


@pytest.mark.parametrize(("rate", "cause"), [(0.1, False), (0.3, True)])
@pytest.mark.parametrize("name", [*JUMPS, "correlation_trap"])
def test_a_message_names_a_learning_rate_that_was_raised(name: str, rate: float, *, cause: bool) -> None:
    """As the cause of the change, also where another rule on it has found nothing."""
    measure, before, after = (JUMPS | {"correlation_trap": ("trap", 0.3, 2.0)})[name]
    values = [(before, 0.1)] * 10 + [(after, rate)] * 3
    readings = [
        reading(step, measures={measure: value}, learning_rate=each)
        for step, (value, each) in enumerate(values, start=1)
    ]
    (alert,) = alerts_of(RULES[name], (report(layer.step, layer) for layer in readings))
    assert ("; its learning rate rose from 0.1 to 0.3" in alert.message) is cause


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_is_reported_and_lasts_until_it_is_taken_back(name: str) -> None:
    """However long: the baseline is that from before it, also for what comes after: the way back is not a jump."""
    measure, before, after = JUMPS[name]
    checks = RULES[name].checks
    for values in ([before] * 10 + [after] * 40 + [before] * 30, [before] * 10 + [after] * 40 + [before] * 3):
        assert series(name, measure, values) == [(10 + checks, "firing"), (53, "resolved")]


RISING = [1e-5 * 1.5**k for k in range(30)]


@pytest.mark.parametrize(
    ("rates", "way", "count"),
    [
        (RISING, 0.1, 0),
        (RISING[:10] + [1.2 * RISING[12]] * 20, 0.1, 0),
        (RISING, 0.9, 1),
        (RISING, np.nan, 1),
        ([1e-4] * 10 + [1e-2] * 20, 0.1, 1),
        ([1e-4] * 30, 0.1, 1),
        ([1e-4 * k for k in range(1, 31)], 0.1, 1),
        ([np.nan] * 30, 0.1, 1),
    ],
    ids=["rising", "risen", "has-learned", "way-unknown", "raised", "constant", "linear", "unknown"],
)
@pytest.mark.parametrize("name", [*JUMPS, "correlation_trap"])
def test_a_layer_that_hardly_learned_in_its_baseline_for_its_low_rate_does_not_jump(
    name: str, rates: Sequence[float], way: float, count: int
) -> None:
    """It begins to learn as the rate rises. A trap is a notice then."""
    measure, before, after = (JUMPS | {"correlation_trap": ("trap", 0.3, 2.0)})[name]
    readings = [
        reading(step, measures={measure: before if step <= 10 else after}, learning_rate=rate, start_ratio=way)
        for step, rate in enumerate(rates[:14], start=1)
    ]
    alerts = alerts_of(RULES[name], (report(layer.step, layer) for layer in readings))
    assert len([alert for alert in alerts if alert.severity != "info"]) == count


@pytest.mark.parametrize("name", JUMPS)
def test_no_jump_is_reported_before_there_is_a_baseline(name: str) -> None:
    """Early training is all jumps."""
    measure, before, after = JUMPS[name]
    assert series(name, measure, [before] * 3 + [after] * 20) == []


@pytest.mark.parametrize("name", JUMPS)
def test_the_same_distance_at_a_steady_pace_is_no_jump(name: str) -> None:
    """Stable rank falls and norms grow in every healthy training."""
    measure, before, after = JUMPS[name]
    assert series(name, measure, np.geomspace(before, after, 30)) == []


@pytest.mark.parametrize("name", JUMPS)
def test_a_layer_that_goes_to_and_fro_has_a_wide_baseline(name: str) -> None:
    """A factor of two is nothing where the last readings scatter by as much."""
    measure, before, after = JUMPS[name]
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


def test_a_first_spike_that_grows_for_long_is_no_drop() -> None:
    """From near noise, as in a key of a decoder that learns to attend; its trend lags behind it."""
    growing = [15.3, 15.1, 14.9, 14.8, 14.5, 12.6, 9.86, 7.6, 6.08, 5.1, 4.57, 4.23, 4.01]
    assert series("stable_rank_drop", "stable_rank", [2.4 * rank for rank in [17.3, 16.4, *growing]]) == []
    assert series("stable_rank_drop", "stable_rank", [1.2 * rank for rank in [17.3, 16.4, *growing]]) != []


def test_a_spike_that_fades_away_slowly_is_no_regression() -> None:
    """Until none is left."""
    soft_ranks = np.linspace(0.5, 1.0, 40)
    phases = [Phase.BULK_SPIKES if soft_rank < 0.84 else Phase.RANDOM_LIKE for soft_rank in soft_ranks]
    readings = [
        reading(step, measures={"mp_soft_rank": soft_rank}, phase=phase)
        for step, (soft_rank, phase) in enumerate(zip(soft_ranks, phases, strict=True), start=1)
    ]
    assert alerts_of(RULES["phase_regression"], (report(layer.step, layer) for layer in readings)) == []


@pytest.mark.parametrize(
    ("before", "stable_rank", "raised"), [(32.0, 31.0, []), (32.0, 33.0, ["firing"]), (12.0, 13.0, [])]
)
def test_spikes_that_the_scales_explain_now_are_no_regression(
    before: float, stable_rank: float, raised: list[str]
) -> None:
    """As in a SIREN, where a row comes to nine times the mean: its spectrum grows steeper, that of a loss flatter.

    As in an embedding of positions, which are used more or less: noise of equal scales has a stable rank of 40.
    """
    readings = [
        *(reading(step, measures={"mp_soft_rank": 0.5, "stable_rank": before}) for step in range(1, 11)),
        *(
            reading(step, phase=Phase.RANDOM_LIKE, measures={"mp_soft_rank": 1.0, "stable_rank": stable_rank})
            for step in range(11, 20)
        ),
    ]
    alerts = alerts_of(RULES["phase_regression"], (report(layer.step, layer) for layer in readings))
    assert [alert.state for alert in alerts] == raised


def test_scale_collapse_is_reported_however_slowly_it_comes() -> None:
    """Against the first reading of the run, and not the last ones; it is resolved at a fifth."""
    values = [*np.geomspace(4.0, 0.35, 60), 0.5, 0.6, 0.7, 0.9, 0.9, 0.9]
    ((fired, _), (resolved, _)) = series("scale_collapse", "frobenius_norm", values)
    assert 50 < fired < 62
    assert resolved == 66


@pytest.mark.parametrize("phase", [Phase.BULK_SPIKES, Phase.UNCLASSIFIED, Phase.RANK_COLLAPSE])
def test_one_phase_back_is_no_regression_nor_is_what_has_no_place_in_the_order(phase: Phase) -> None:
    """Layers on a border go to and fro; a collapse has a rule of its own."""
    readings = [*map(reading, range(1, 11)), *(reading(step, phase=phase) for step in range(11, 20))]
    assert alerts_of(RULES["phase_regression"], (report(layer.step, layer) for layer in readings)) == []


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
def test_an_explosion_before_the_first_reading_is_reported(
    moved: float, norms: list[float], expected: list[tuple[int, str]]
) -> None:
    """Of 4, say; there is nothing to expect yet, but it is known how far it has moved."""
    readings = [
        reading(step, measures={"spectral_norm": norm}, moved=moved if step == 1 else 0.01)
        for step, norm in enumerate(norms, start=1)
    ]
    assert steps(alerts_of(RULES["norm_explosion"], (report(layer.step, layer) for layer in readings))) == expected


_BEFORE = np.random.default_rng(0).standard_normal((300, 96)) / 10
_POINT = np.random.default_rng(1).standard_normal(96) / 10
_TREND = np.outer(np.random.default_rng(2).standard_normal(300), _POINT)


@pytest.mark.parametrize(
    ("weight", "rule"),
    [
        (lambda t: _BEFORE + t * (_POINT - _BEFORE), "entropy_collapse"),
        (lambda t: _BEFORE + t * (3 * _POINT - _BEFORE), "norm_explosion"),
        (lambda t: _BEFORE + t * (0.1 - _BEFORE), "correlation_trap"),
        (lambda t: _BEFORE + 4 * t * _TREND, "norm_explosion"),
        (lambda t: (1 - 0.03 * t) * _BEFORE + 1.1 * t * _TREND, "norm_explosion"),
        (lambda t: (1 + 9 * t) * _BEFORE, "norm_explosion"),
    ],
    ids=["rows drawn to a point", "to a larger one", "to a constant", "a direction grows", "beside decay", "all grow"],
)
def test_what_grows_at_the_cost_of_the_rest_does_not_blow_up(weight: Callable[[float], Any], rule: str) -> None:
    """The first alert names the fault: the spectral norm is more than three times as large in each."""
    module = nn.Linear(96, 300)
    readings = []
    for step, share in enumerate([0.0] * 8 + [0.6, 0.8, 0.9, 0.95, 0.98], start=1):
        module.weight.data = torch.tensor(weight(share), dtype=torch.float32)
        (layer,) = analyze(module)
        readings.append(replace(layer, step=step, update_ratio=0.01, in_optimizer=True))
    assert readings[-1].measures["spectral_norm"] > 3 * readings[0].measures["spectral_norm"]
    first, *_ = alerts_of(BUILT_IN_RULES, (report(layer.step, layer) for layer in readings))
    assert (first.rule, first.state) == (rule, "firing")


def _norms_while_a_trap_fires(norms: Sequence[float]) -> list[tuple[int, str, str]]:
    """Return step, rule and state of all alerts on a layer with such norms, in which a mean appears at step 20."""
    rules = [RULES["norm_explosion"], RULES["correlation_trap"]]
    readings = [
        reading(step, measures={"trap": 0.3 if step < 20 else 2.5, "spectral_norm": norm})
        for step, norm in enumerate(norms, start=1)
    ]
    alerts = alerts_of(rules, (report(layer.step, layer) for layer in readings))
    return [(alert.step, alert.rule, alert.state) for alert in alerts]


def test_a_layer_that_goes_on_to_learn_during_a_long_alert_has_a_new_baseline() -> None:
    """Its norm grows fourfold in 280 readings, by half a percent each: with the baseline from before it explodes."""
    assert _norms_while_a_trap_fires([4 * 1.005**k for k in range(300)]) == [(22, "correlation_trap", "firing")]


def test_a_layer_that_blows_up_during_a_long_alert_is_reported() -> None:
    """Ten times as large from step 100 on."""
    found = _norms_while_a_trap_fires([4 * 1.005**k * (10 if k >= 99 else 1) for k in range(110)])
    assert found == [(22, "correlation_trap", "firing"), (101, "norm_explosion", "firing")]


@pytest.mark.parametrize(("view", "severity"), [("weight", "warning"), ("lora-delta", "info"), ("difference", "info")])
def test_an_adapter_that_is_begun_again_is_a_notice(view: str, severity: str) -> None:
    """As in ReLoRA, which merges it into its base: it starts at zero each time, and the base has what it learned."""
    norms = [2.0] * 10 + [0.1, 0.14, 0.17, 0.2]
    layers = [reading(k, view=view, measures={"frobenius_norm": norm}) for k, norm in enumerate(norms, start=1)]
    (alert,) = alerts_of(RULES["scale_collapse"], (report(layer.step, layer) for layer in layers))
    assert (alert.step, alert.severity) == (13, severity)
