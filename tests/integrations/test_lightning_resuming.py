"""Runs that are resumed, and several fits of one callback of Lightning."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import esdmon
from esdmon.sinks import MemorySink
from esdmon_lightning import SpectralMonitor
from tests.integrations.lightning_runs import Small, batches, trainer
from tests.integrations.runs import monitor_of, remembered_steps, summary_steps

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_resumed_fit_continues_without_gap_or_duplicate(tmp_path: Path) -> None:
    """Stopped after an epoch and resumed from a checkpoint: the readings are those of an unbroken run."""
    sinks = [MemorySink() for _ in range(3)]
    whole = SpectralMonitor(every=6, budget=None, sinks=[sinks[0]])
    trainer(tmp_path, whole, max_epochs=2).fit(Small(), batches())
    first = trainer(tmp_path, SpectralMonitor(every=6, budget=None, sinks=[sinks[1]]))
    first.fit(Small(), batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = SpectralMonitor(every=6, budget=None, sinks=[sinks[2]])
    trainer(tmp_path, second, max_epochs=2).fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    expected = [layer.to_record() for report in sinks[0].reports for layer in report.new]
    assert [record["step"] for record in expected[::2]] == [6, 12, 18, 24, 30, 36]
    assert [layer.to_record() for sink in sinks[1:] for report in sink.reports for layer in report.new] == expected
    assert len(remembered_steps(second, "net.0")) == 6


def test_a_checkpoint_without_the_callback_can_be_resumed_with_it(tmp_path: Path) -> None:
    """The first step is the Trainer's."""
    first = trainer(tmp_path)
    first.fit(Small(), batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    sink = MemorySink()
    second = SpectralMonitor(every=6, budget=None, sinks=[sink])
    trainer(tmp_path, second, max_epochs=2).fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert [report.step for report in sink.reports] == [24, 30, 36]


def test_a_resumed_fit_appends_to_its_own_file(tmp_path: Path) -> None:
    """Not to that of a later run in the same folder."""
    fit = trainer(tmp_path, SpectralMonitor(every=5, budget=None))
    fit.fit(Small(), batches())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, SpectralMonitor(every=10, budget=None)).fit(Small(), batches())
    resumed = trainer(tmp_path, SpectralMonitor(every=5, budget=None), max_epochs=2)
    resumed.fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    files = sorted(tmp_path.glob("esdmon-*/esdmon.jsonl"))
    assert [summary_steps(file) for file in files] == [[5, 10, 15, 20, 25, 30, 35, 40], [10, 20]]


def test_a_second_fit_continues_the_first(tmp_path: Path) -> None:
    """With its steps and its history."""
    sink = MemorySink()
    fit = trainer(tmp_path, SpectralMonitor(every=8, budget=None, sinks=[sink]))
    model = Small()
    fit.fit(model, batches())
    fit.fit_loop.max_epochs = 2
    fit.fit(model, batches())
    assert [report.step for report in sink.reports] == [8, 16, 24, 32, 40]
    assert sink.reports[2]["net.0"].update_ratio > 0


def test_each_trainer_has_a_run_of_its_own(tmp_path: Path) -> None:
    """One callback for several folds: all readings of a fold are written, and the next has no history of it."""
    file = tmp_path / "a.jsonl"
    callback = SpectralMonitor(every=5, budget=None, sinks=[f"jsonl:{file}"])
    bad = Small()
    bad.get_parameter("net.0.weight").data[0, 0] = math.nan
    trainer(tmp_path, callback).fit(bad, batches())
    first = monitor_of(callback)
    assert [alert.rule for alert in first.alerts] == ["non_finite"]
    trainer(tmp_path, callback).fit(Small(), batches())
    assert monitor_of(callback) is not first
    assert monitor_of(callback).alerts == ()
    assert len(remembered_steps(callback, "net.0")) == 4
    assert summary_steps(file) == [5, 10, 15, 20, 5, 10, 15, 20]


def test_another_model_on_the_same_trainer_is_another_run(tmp_path: Path) -> None:
    """The steps continue; the history is that of the new model alone."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, callback)
    fit.fit(Small(), batches())
    fit.fit_loop.max_epochs = 2
    fit.fit(Small(), batches())
    assert remembered_steps(callback, "net.0") == [25, 30, 35, 40]


def test_a_state_that_another_trainer_loaded_is_not_used(tmp_path: Path) -> None:
    """A state is for the fit that loads it; one of another version ends no fit."""
    first = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, first)
    fit.fit(Small(), batches())
    second = SpectralMonitor(every=5, budget=None, sinks=None)
    second.load_state_dict(first.state_dict())
    trainer(tmp_path, second).fit(Small(), batches())
    assert remembered_steps(second, "net.0") == [5, 10, 15, 20]
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["callbacks"]["SpectralMonitor"]["version"] = -1
    torch.save(saved, tmp_path / "last.ckpt")
    trainer(tmp_path, second, max_epochs=2).fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert remembered_steps(second, "net.0") == [25, 30, 35, 40]


def test_a_damaged_state_in_a_checkpoint_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor do damaged metrics in it: one line is logged, and readings continue."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, callback)
    setup = callback.setup

    def damaged(trainer: Any, pl_module: Any, stage: str) -> None:
        setup(trainer, pl_module, stage)
        callback.load_state_dict({"steps": "x", "summary": 5})

    callback.setup = damaged  # type: ignore[method-assign]
    fit.fit(Small(), batches())
    assert fit.global_step == 20
    assert caplog.text.count("cannot be loaded") == 1


class InAttribute(Small):
    """Its layers are in an attribute `model`, as most modules of Lightning have them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self.net
        del self.net

    def loss(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = self.model(batch[0]).square().mean()
        return loss


def test_a_checkpoint_with_an_average_has_the_names_of_the_model(tmp_path: Path) -> None:
    """Lightning 2.6 saves the average as the model, and the model that is trained under a key of its own."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    fit = trainer(tmp_path, callbacks.EMAWeightAveraging())
    fit.fit(InAttribute(), batches())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    names = [layer.name for layer in esdmon.analyze(tmp_path / "last.ckpt")]
    assert names == ["0", "2", "current_model_state.0", "current_model_state.2"]
