"""Callbacks that the Trainer of Hugging Face makes from a checkpoint, with their options."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esdmon
import esdmon.schedule
from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor
from tests.integrations.runs import monitor_of, remembered_steps
from tests.integrations.transformers_runs import NAMES, trainer
from tests.rules import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves


def test_a_restored_callback_has_the_options_and_state_of_the_checkpoint(tmp_path: Path) -> None:
    """With `restore_callback_states_from_checkpoint` the Trainer makes a callback in the place of the given one."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=None), max_steps=6, **saving).train()
    again = trainer(tmp_path, SpectralMonitor(every=1), restore_callback_states_from_checkpoint=True, **saving)
    again.train(resume_from_checkpoint=True)
    (callback,) = [one for one in again.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    report = monitor_of(callback).report
    assert report is not None
    assert report.step == 12
    assert remembered_steps(callback, NAMES[0]) == [4, 8, 12]


def test_options_that_json_cannot_hold_are_taken_from_the_replaced_callback(tmp_path: Path) -> None:
    """Functions and sinks; the callback that the user has shows the monitor of the restored one."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    first = SpectralMonitor(lambda step: step % 2 == 0, budget=None, sinks=[MemorySink()], on_alert=print)
    trainer(tmp_path, first, max_steps=6, **saving).train()
    sink, called = MemorySink(), list[Any]()
    second = SpectralMonitor(
        lambda step: step % 3 == 0, budget=0.5, sinks=[sink], alerts=[ALWAYS], on_alert=called.append
    )
    fit = trainer(tmp_path, second, restore_callback_states_from_checkpoint=True, **saving)
    fit.train(resume_from_checkpoint=True)
    (callback,) = [one for one in fit.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    assert [report.step for report in sink.reports] == [9, 12]
    assert [alert.rule for alert in called] == ["always"]
    assert callback.options["budget"] is None  # of the checkpoint
    assert monitor_of(second) is monitor_of(callback)


def test_options_that_are_lost_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Options that neither the checkpoint nor the replaced callback has."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    int_of_numpy: Any = np.int64(2)
    trainer(tmp_path, SpectralMonitor(every=int_of_numpy, sinks=None, on_alert=print), max_steps=6, **saving).train()
    second = SpectralMonitor(every=5, sinks=None)
    with caplog.at_level(logging.WARNING, "esdmon"):
        fit = trainer(tmp_path, second, restore_callback_states_from_checkpoint=True, **saving)
        fit.train(resume_from_checkpoint=True)
    assert (
        "the checkpoint does not contain the options on_alert, and no callback of this Trainer sets them" in caplog.text
    )
    (callback,) = [one for one in fit.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    assert callback.options["every"] == 2


def test_an_address_is_not_in_the_trainers_checkpoint(tmp_path: Path) -> None:
    """Which is passed on, while an address may be a secret."""
    sinks = ["webhook:https://127.0.0.1:1/hush", f"jsonl:{tmp_path / 'a.jsonl'}"]
    callback = SpectralMonitor(every=4, budget=None, sinks=sinks)
    trainer(tmp_path, callback, save_strategy="steps", save_steps=6).train()
    state = (tmp_path / "checkpoint-6" / "trainer_state.json").read_text()
    assert "a.jsonl" in state
    assert "hush" not in state


def test_a_callback_is_copied_and_pickled(tmp_path: Path) -> None:
    """Before and after training, and with a copy of the Trainer."""
    callback = SpectralMonitor(every=esdmon.schedule.union(2, 3), budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    fit = trainer(tmp_path, callback, max_steps=4)
    for _ in range(2):
        for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301 -- our own
            assert again.monitor is None
            assert again.options == callback.options
        fit.train()
    assert copy.deepcopy(fit).callback_handler is not fit.callback_handler
