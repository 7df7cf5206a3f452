"""Rules on layers that have no baseline yet."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from tests.alerts.histories import RULES, alerts_of, reading, report
from tests.alerts.trainings import Decayed, Digits


def _set(**options: float) -> Callable[[Digits], object]:
    return lambda training: training.optimizer.param_groups[0].update(options)


def _replace(training: Digits) -> None:
    nn.init.xavier_normal_(training.weight("fc1").data)


@pytest.mark.parametrize("make", [Digits, Decayed])
@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda training: _set(lr=training.optimizer.param_groups[0]["lr"] * 8)(training), "update_surge"),
        (lambda training: _set(lr=training.optimizer.param_groups[0]["lr"] * 100)(training), "norm_explosion"),
        (_set(weight_decay=10.0), "norm_decay"),
        (_replace, "layer_reset"),
    ],
    ids=["learning rate × 8", "learning rate × 100", "weight decay", "a layer replaced"],
)
def test_a_fault_after_three_readings_is_named(
    make: Callable[[], Digits], fault: Callable[[Digits], object], rule: str
) -> None:
    """Within an interval, as extra readings confirm it; the same training without the fault raises nothing."""
    for is_faulty in (True, False):
        torch.set_num_threads(1)
        training = make()
        with esdmon.watch(
            training.model, training.optimizer, every=60, budget=None, mode="sync", sinks=None
        ) as monitor:
            for step in range(300):
                if step == 180 and is_faulty:
                    fault(training)
                training.step()
        fired = [alert for alert in monitor.alerts if alert.state == "firing" and alert.severity != "info"]
        if is_faulty:
            assert fired[0].rule == rule
            assert 180 < fired[0].step <= 260
        else:
            assert fired == []


@pytest.mark.parametrize(
    "rates",
    [
        [k / 10 for k in range(1, 10)],
        [1e-4 * 4**k for k in range(9)],
        [0.04 + 0.48 * (1 - math.cos(math.pi * k / 9)) for k in range(9)],
        [0.01, 0.01, 0.01, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4],
        [1.0, 0.1, 0.01, 1.0, 0.1, 0.01, 1.0, 0.1, 0.01],
    ],
    ids=["linear", "exponential", "cosine", "by epochs", "restarts"],
)
def test_a_schedule_is_no_fault(rates: list[float]) -> None:
    """The steps of a layer are as long as its learning rate, and its norm grows with them."""
    readings = [
        reading(
            step, step_ratio=0.005 * rate, learning_rate=rate, start_ratio=0.05, measures={"spectral_norm": 4 + rate}
        )
        for step, rate in enumerate(rates, start=1)
    ]
    rules = [RULES[name] for name in ("update_surge", "norm_explosion", "layer_reset", "norm_decay")]
    assert alerts_of(rules, (report(layer.step, layer) for layer in readings)) == []


@pytest.mark.parametrize(
    ("known", "changes", "expected"),
    [
        (3, {}, ["update_surge"]),
        (1, {}, []),  # it may be the beginning of a warm-up
        (3, {"learning_rate": math.nan}, []),
        (3, {"learning_rate": 0.1}, []),
        (3, {"start_ratio": 0.05}, []),
        (3, {"start_ratio": 0.05, "step_ratio": 0.05}, ["update_surge"]),
    ],
)
def test_steps_surge_where_the_rate_was_raised_in_a_layer_that_had_learned(
    known: int, changes: Any, expected: list[str]
) -> None:
    usual: dict[str, Any] = {"learning_rate": 0.1, "start_ratio": 0.4, "step_ratio": 0.001}
    before = usual | {"start_ratio": changes.get("start_ratio", 0.4)}
    faulty = usual | {"learning_rate": 1.0, "step_ratio": 0.01} | changes
    readings = [reading(step, **(before if step <= known else faulty)) for step in range(1, known + 4)]
    alerts = alerts_of(RULES["update_surge"], (report(layer.step, layer) for layer in readings))
    assert [alert.rule for alert in alerts] == expected
    assert all("its learning rate rose from 0.1 to 1" in alert.message for alert in alerts)


@pytest.mark.parametrize(("start", "expected"), [(0.3, ["norm_explosion"]), (math.inf, [])])
def test_a_weight_blows_up_between_two_readings_unless_it_began_at_zero(start: float, expected: list[str]) -> None:
    norms = [(4.0, start), (4.2, 0.1), (90.0, 20.0), (90.0, 0.01)]
    readings = [
        reading(step, moved=moved, measures={"spectral_norm": norm})
        for step, (norm, moved) in enumerate(norms, start=1)
    ]
    alerts = alerts_of(RULES["norm_explosion"], (report(layer.step, layer) for layer in readings))
    assert [alert.rule for alert in alerts] == expected
