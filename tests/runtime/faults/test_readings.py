"""Weights, measures, rules and schedules that fail beside a training: it ends as without a monitor."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esdmon.alerts import AlertRule
from esdmon.spectrum import Spectrum
from tests.jsonl import records_in
from tests.runtime.faults.disturbed import STEPS, Plugin, Run, both_modes, n_logged


@both_modes
def test_weights_that_are_nan(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """The training goes on with them, as it would have."""
    runs = [Run(mode=mode), Run()]
    for run in runs:

        def spoil(step: int, run: Run = run) -> None:
            if step == 5:
                with torch.no_grad():
                    run.model.get_parameter("2.weight")[0, 0] = math.nan

        run.train(before=spoil)
    runs[0].monitor.close()
    watched, plain = (torch.tensor(run.losses) for run in runs)
    assert torch.equal(watched.nan_to_num(-1.0), plain.nan_to_num(-1.0))
    assert runs[0].monitor.errors == ()
    assert [alert.layers for alert in runs[0].monitor.alerts if alert.rule == "non_finite"] == [("0", "2")]
    assert runs[0].sink.reports[-1]["2"].status == "nonfinite"
    assert n_logged(caplog, "NaN or infinite") == 1


@both_modes
def test_weights_that_are_restored_after_nan(mode: str) -> None:
    """They are read at the next due step, and the alert ends; until then they do not count as unchanged."""
    run = Run(mode=mode, budget=1.0)
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}

    def spoil_and_restore(step: int) -> None:
        run.monitor.flush()  # on a busy machine the queue of the thread would be full
        if step == 5:
            with torch.no_grad():
                run.model.get_parameter("2.weight").fill_(math.nan)
        if step == 11:
            run.model.load_state_dict(state)
            run.optimizer.state.clear()

    run.train(before=spoil_and_restore)
    run.monitor.close()
    reports = {report.step: report for report in run.sink.reports}
    assert {step: report["2"].status for step, report in reports.items()} == {
        step: "nonfinite" if 5 <= step < 11 else "ok" for step in reports
    }
    assert reports[10]["2"].step < 10
    assert not reports[10]["2"].unchanged
    assert "2 of 2 read earlier, the oldest at step 6: 2 still without a spectrum" in str(reports[10])
    assert [(alert.rule, alert.state) for alert in run.monitor.alerts] == [
        ("non_finite", "firing"),
        ("non_finite", "resolved"),
    ]


@both_modes
def test_a_measure_that_raises(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """It is undefined; the others have their numbers."""

    def bad(_spectrum: Spectrum) -> float:
        raise ZeroDivisionError("in the plugin")

    run = Run(mode=mode, plugins=[Plugin(bad)])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["measure of_the_plugin (plugin 'Plugin', esdmon_register_measures)"]
    layer = run.sink.reports[-1]["0"]
    assert math.isnan(layer.measures["of_the_plugin"])
    assert layer.measures["alpha"] > 1
    assert n_logged(caplog, "in the plugin") == 1


def test_a_full_queue(undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Readings are left out and counted; the loop waits for none."""
    gate = threading.Event()
    run = Run(mode="thread", every=1, plugins=[Plugin(lambda _spectrum: float(gate.wait(60)))])
    run.train()
    gate.set()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.steps_read == [1, 2, 3, 4]
    assert run.monitor.dropped == 2 * (STEPS - 4)
    assert n_logged(caplog, "because the queue is full") == 1


@both_modes
def test_resuming_from_an_older_step(mode: str, tmp_path: Path) -> None:
    """What the first run wrote after its checkpoint is gone from the file, and is written again."""
    path = tmp_path / "a.jsonl"
    states: list[dict[str, Any]] = []
    first = Run(mode=mode, sinks=[f"jsonl:{path}"])
    first.train(before=lambda step: states.append(first.monitor.state_dict()) if step == 6 else None)
    first.monitor.close()
    second = Run(mode=mode, sinks=[f"jsonl:{path}"])
    second.monitor.load_state_dict(states[0])
    second.train(before=lambda _step: second.monitor.flush())  # a short run on a busy machine drops none
    second.monitor.close()
    records = records_in(path)
    steps = [record["step"] for record in records if record["kind"] == "summary"]
    assert steps == sorted(set(steps))
    assert steps[:2] == [2, 4]
    assert steps[-1] > STEPS
    assert steps[2:] == second.steps_read


@both_modes
def test_a_model_whose_layer_is_replaced(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """The new one is read under its name, and what the old one was is not compared with it."""
    caplog.set_level("INFO", logger="esdmon")
    runs = [Run(mode=mode), Run()]
    for run in runs:

        def replace(step: int, run: Run = run) -> None:
            if step == 6:
                torch.manual_seed(1)
                run.model[2] = nn.Linear(80, 64)
                run.optimizer.add_param_group({"params": list(run.model[2].parameters())})

        run.train(before=replace)
    runs[0].monitor.close()
    assert runs[0].losses == runs[1].losses
    assert caplog.text.count("the parameters of the model have changed") == 1
    last = runs[0].sink.reports[-1]["2"]
    norm = float(runs[0].model.get_parameter("2.weight").detach().norm())
    assert last.measures["frobenius_norm"] == pytest.approx(norm, rel=0.2)
    assert last.in_optimizer


def test_a_rule_that_gives_something_else_is_the_rules_fault(undisturbed: list[float]) -> None:
    """And no other's."""
    rule = AlertRule("bad", lambda _history: ["it is bad"])  # type: ignore[list-item]
    run = Run(mode="sync", alerts=["default", rule])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["rule bad"]
    assert "a rule must return Finding objects; got 'it is bad'" in run.monitor.errors[0].message
    assert len(run.steps_read) == STEPS / 2


def test_a_schedule_that_raises_now_and_then_is_asked_again(undisturbed: list[float]) -> None:
    """What is due and fails is not forgiven by the steps that are not due."""

    def schedule(step: int) -> bool:
        if step in (3, 9):
            raise KeyError(step)
        return step % 2 == 0

    run = Run(mode="sync", every=schedule)
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert run.steps_read == list(range(2, STEPS + 1, 2))
    assert [(fault.who, fault.count) for fault in run.monitor.errors] == [("schedule", 2)]


def test_a_reading_that_fails_at_every_due_step_is_shut_off(
    undisturbed: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After three due steps, whatever lies between them."""
    run = Run(mode="sync", every=3)

    def broken(*_arguments: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(run.monitor._readings, "begin", broken)
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert [(fault.who, fault.count, fault.disabled) for fault in run.monitor.errors] == [("monitor", 3, True)]
    assert n_logged(caplog, "monitor has failed 3 times in a row and is paused for 10 due steps") == 1
