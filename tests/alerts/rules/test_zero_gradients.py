"""`dead_layer` of weights whose gradient is zero while the optimizer goes on to move them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon import Monitor
from tests.alerts.histories import RULES, alerts_of, reading, report, steps
from tests.alerts.trainings import Digits

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Lion": lambda given: pytest.importorskip("bitsandbytes").optim.Lion32bit(given, lr=1e-4),
    "SGD, momentum .99": lambda given: torch.optim.SGD(given, lr=5e-3, momentum=0.99),
    "AdamW": lambda given: torch.optim.AdamW(given, lr=1e-3, weight_decay=0.1),
}


def _run(make: Callable[..., torch.optim.Optimizer], fault: Callable[[Digits], Callable[[], object]] | None) -> Monitor:
    """Train 260 steps, with the fault from step 160 to 220; `fault` begins it, and returns what ends it."""
    torch.set_num_threads(1)
    training = Digits()
    training.optimizer = make(list(training.model.parameters()))
    with esdmon.watch(training.model, training.optimizer, every=10, budget=None, mode="sync", sinks=None) as monitor:
        for step in range(260):
            if step == 160 and fault is not None:
                end = fault(training)
            if step == 220 and fault is not None:
                end()
            training.step()
    return monitor


def _one_layer(training: Digits) -> Callable[[], object]:
    hook: Any = training.weight("fc1").register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]

    def end() -> None:
        hook.remove()

    return end


def _all_layers(training: Digits) -> Callable[[], object]:
    """The loss is multiplied by zero."""
    loss, training.loss = training.loss, lambda: 0 * loss()  # type: ignore[method-assign]

    def end() -> None:
        training.loss = loss  # type: ignore[method-assign]

    return end


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
@pytest.mark.parametrize(
    ("fault", "layers"),
    [(_one_layer, ("fc1",)), (_all_layers, ("fc1", "fc2", "fc3")), (None, ())],
    ids=["one", "all", "none"],
)
def test_a_layer_without_a_gradient_is_dead_whatever_the_optimizer_does(
    make: Callable[..., torch.optim.Optimizer], fault: Any, layers: tuple[str, ...]
) -> None:
    alerts = [alert for alert in _run(make, fault).alerts if alert.rule == "dead_layer"]
    assert [alert.state for alert in alerts] == ["firing", "resolved"][: 2 * len(layers)]
    assert all(alert.layers == layers for alert in alerts)
    if layers:
        assert 160 < alerts[0].step <= 220 < alerts[1].step


def _reports(shares: list[float], **fields: Any) -> list[Any]:
    return [
        report(step, reading(step), reading(step, "dead", zero_gradient=share, **fields))
        for step, share in enumerate(shares, start=1)
    ]


@pytest.mark.parametrize(
    ("before", "after", "fires"),
    [
        ([0.2] * 10, [1.0] * 6, 16),
        ([0.2] * 10, [0.99] * 12, None),
        ([0.97] * 10, [1.0] * 30, None),  # by chance, as of inputs that are counts of words
        ([math.nan] * 10, [math.nan] * 12, None),
        ([0.2] * 5 + [1.0] + [0.2] * 6, [1.0] * 6, None),  # an expert that gets no token now and then
        ([0.2] * 5 + [1.0] + [0.2] * 6, [1.0] * 12, 20),
        ([0.2] * 3, [1.0] * 12, 11),  # not known yet whether it is one
    ],
)
def test_a_gradient_is_zero_in_five_checks(before: list[float], after: list[float], fires: int | None) -> None:
    alerts = alerts_of(RULES["dead_layer"], _reports(before + after))
    assert steps(alerts) == ([] if fires is None else [(fires, "firing")])
    assert all("its gradient is zero, while other layers have one" in alert.message for alert in alerts)


def test_layers_that_all_shrink_by_weight_decay_alone_are_not_said_to_be_moved_by_gradients() -> None:
    """Their gradients are too small to be seen, but not zero, as at the end of a training with SGD."""
    fields: dict[str, Any] = {"step_ratio": 1e-4, "step_growth": -1e-4, "moved": 1e-4, "weight_decay": 0.1}
    reports = [
        report(step, *(reading(step, name, zero_gradient=0.1, **fields) for name in ("fc1", "fc2")))
        for step in range(1, 30)
    ]
    assert alerts_of(RULES["dead_layer"], reports) == []


def test_rows_of_an_embedding_get_no_gradient_at_most_steps() -> None:
    assert alerts_of(RULES["dead_layer"], _reports([0.9] * 10 + [1.0] * 12, kind="embedding")) == []


def test_a_gradient_that_is_set_to_none_in_the_step_is_not_known() -> None:
    """The rule then finds what it found before: weights that stand still."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad())
    with esdmon.watch(model, optimizer, every=2, budget=None, mode="sync", sinks=None) as monitor:
        for _ in range(20):
            model(torch.randn(8, 64)).square().sum().mul(1e-3).backward()
            optimizer.step()
    assert monitor.report is not None
    assert math.isnan(monitor.report.layers[0].zero_gradient)


def test_gradients_that_the_loop_sets_to_zero_before_it_counts_the_step_say_nothing() -> None:
    """`monitor.step()` comes after `zero_grad(set_to_none=False)`, so that each sampled gradient is zero."""
    torch.set_num_threads(1)
    training = Digits()
    optimizer = training.optimizer
    with esdmon.watch(training.model, optimizer, hook=False, every=10, budget=None, mode="sync", sinks=None) as monitor:
        for _ in range(200):
            training.loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            monitor.step()
    assert monitor.report is not None
    assert all(layer.zero_gradient == 1 for layer in monitor.report)
    assert [alert for alert in monitor.alerts if alert.rule == "dead_layer"] == []
