"""Alerts of real trainings that go wrong, and of their healthy twins."""

import copy

import pytest
import torch

import esdmon
from esdmon import Monitor
from tests.alerts.scenarios import SCENARIOS, Scenario
from tests.alerts.trainings import Digits
from tests.benchmarks.healthy import OPTIMIZERS, TASKS, batches

every_scenario = pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, marks=pytest.mark.slow if each.long else ()) for each in SCENARIOS],
    ids=[each.name for each in SCENARIOS],
)


@every_scenario
def test_the_right_rule_fires_in_time_in_the_right_layers_and_nothing_else(scenario: Scenario) -> None:
    """And it is resolved when the cause is taken away. Notices (`info`) may be heard besides; they wake nobody.

    Many causes are taken away by setting the weights back, as from a checkpoint, which may be a notice too.
    """
    monitor = scenario.run(faulty=True)
    begins, ends, _ = scenario.stretches
    alerts = [alert for alert in monitor.alerts if alert.severity != "info" or alert.rule == scenario.rule]
    loud = {"warning", "error", scenario.severity}
    fired = [alert for alert in alerts if alert.state == "firing" and alert.severity in loud]
    first = fired[0]
    assert (first.rule, first.severity) == (scenario.rule, scenario.severity)
    assert begins < first.step <= begins + scenario.within * scenario.every
    assert {alert.rule for alert in fired} <= {scenario.rule, *scenario.then}
    assert {layer for alert in fired for layer in alert.layers} == set(scenario.layers)
    (resolved,) = [alert for alert in alerts if alert.state == "resolved" and alert.id == first.id]
    assert resolved.step > ends
    assert monitor.errors == ()


TWINS: dict[object, Monitor] = {}


def healthy(scenario: Scenario) -> Monitor:
    """Return the monitor of the training without a fault, which is one training for many scenarios."""
    key = (scenario.well or scenario.make, scenario.stretches[2], scenario.every, scenario.watched)
    if key not in TWINS:
        TWINS[key] = scenario.run(faulty=False)
    return TWINS[key]


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if not each.long], ids=lambda scenario: scenario.name)
def test_the_healthy_twin_raises_nothing(scenario: Scenario) -> None:
    """No warning, and not that alert at any severity."""
    monitor = healthy(scenario)
    assert [alert for alert in monitor.alerts if alert.severity != "info" or alert.rule == scenario.rule] == []
    assert monitor.errors == ()


def test_a_network_that_begins_to_learn_late_as_its_learning_rate_rises_raises_no_warning() -> None:
    """As `lr·d` of D-Adaptation and Prodigy, where the growth of `d` is limited: the first readings are of a start."""
    torch.manual_seed(0)
    task = TASKS["MLP, 64 inputs"]()
    optimizer = torch.optim.Adam(task.model.parameters(), lr=1e-6)
    with esdmon.watch(task.model, optimizer, every=20, budget=None, mode="sync", sinks=None) as monitor:
        for inputs, targets in batches(task.data, 32, 400, seed=0):
            optimizer.zero_grad()
            task.loss(task.model, inputs, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.param_groups[0]["lr"] = min(1.03 * optimizer.param_groups[0]["lr"], 4e-3)
    assert task.held_back_loss() < 0.15
    assert {alert.severity for alert in monitor.alerts} <= {"info"}


def test_a_small_network_that_has_learned_all_of_its_data_raises_no_warning() -> None:
    """Its alpha falls below 2, the ERG tail confirms that, and it is right on what is held back."""
    torch.manual_seed(0)
    task = TASKS["MLP, 64 inputs, fast"]()
    with esdmon.watch(task.model, every=20, budget=None, sinks=None) as monitor:
        optimizer = OPTIMIZERS["AdamW .1"](task.model.parameters())
        for group in optimizer.param_groups:
            group["lr"] *= task.lr
        for inputs, targets in batches(task.data, 64, 1000, seed=0):
            optimizer.zero_grad()
            task.loss(task.model, inputs, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            monitor.step()
    assert task.held_back_loss() < 0.15
    assert {alert.severity for alert in monitor.alerts} == {"info"}
    messages = [alert.message for alert in monitor.alerts if alert.rule == "over_regularized"]
    assert "the layer neither shrinks nor moves far, and may be healthy; a second criterion, the ERG" in messages[0]


def test_every_rule_has_its_scenario() -> None:
    """But the one about the monitor itself, which no training can be to blame for."""
    from tests.alerts.histories import RULES

    assert {scenario.rule for scenario in SCENARIOS} == RULES.keys() - {"stale_monitor", "reading_failed"}


def test_a_checkpoint_loaded_in_mid_run_is_a_notice() -> None:
    """Between two scheduled readings, where the layers that jump are read first."""
    training = Digits()
    with esdmon.watch(
        training.model, training.optimizer, every=20, budget=None, mode="sync", sinks=[], layers=("*",)
    ) as monitor:
        for step in range(280):
            if step == 20:
                saved = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
            if step == 230:
                training.model.load_state_dict(saved[0])
                training.optimizer.load_state_dict(saved[1])
            training.step()
    fired = [alert for alert in monitor.alerts if alert.state == "firing"]
    assert {(alert.rule, alert.severity) for alert in fired} == {("layer_reset", "info")}
