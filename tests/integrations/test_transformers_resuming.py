"""Training that is resumed from a checkpoint of the Trainer of Hugging Face."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor
from tests.integrations.runs import monitor_of, remembered_steps, summary_steps
from tests.integrations.transformers_runs import NAMES, trainer
from tests.rules import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves


def test_a_resumed_training_continues_without_gap_or_duplicate(tmp_path: Path) -> None:
    """From a checkpoint between two due steps: the readings are those of an unbroken run."""
    sinks = [MemorySink() for _ in range(2)]
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path / "a", SpectralMonitor(every=4, budget=None, sinks=[sinks[0]])).train()
    trainer(tmp_path / "b", SpectralMonitor(every=4, budget=None, sinks=None), **saving).train()
    second = SpectralMonitor(every=4, budget=None, sinks=[sinks[1]])
    trainer(tmp_path / "b", second, **saving).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-6"))
    expected = [layer.to_record() for report in sinks[0].reports for layer in report.new if layer.step > 6]
    assert {record["step"] for record in expected} == {8, 12}
    assert [layer.to_record() for report in sinks[1].reports for layer in report.new] == expected
    assert remembered_steps(second, NAMES[0]) == [4, 8, 12]


def test_a_resumed_training_appends_to_its_own_file(tmp_path: Path) -> None:
    """Not to that of a later run in the same folder."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=3, budget=None), max_steps=6, **saving).train()
    trainer(tmp_path, SpectralMonitor(every=4, budget=None), max_steps=5).train()
    resumed = trainer(tmp_path, SpectralMonitor(every=3, budget=None), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    files = sorted(tmp_path.glob("esdmon-*/esdmon.jsonl"))
    assert [summary_steps(file) for file in files] == [[3, 6, 9, 12], [4]]


def test_a_checkpoint_without_the_callback_can_be_resumed_and_saved_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer's next save needs a callback state, which the checkpoint did not have."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, max_steps=6, **saving).train()
    sink = MemorySink()
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=[sink]), **saving).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )
    assert [report.step for report in sink.reports] == [8, 12]
    assert "the esdmon.pt of its checkpoint is missing" in caplog.text
    saved = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["SpectralMonitor"]["args"]["every"] == 4


def test_the_state_of_the_checkpoint_that_is_resumed_is_found(tmp_path: Path) -> None:
    """Also in a checkpoint that was moved out of `output_dir`, where another run has a checkpoint of that step."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    trainer(tmp_path / "old", SpectralMonitor(every=2, budget=None, sinks=None), **saving).train()
    foreign = SpectralMonitor(every=3, budget=None, sinks=None, alerts=[ALWAYS])
    trainer(tmp_path / "new", foreign, **saving).train()
    shutil.move(tmp_path / "old" / "checkpoint-6", tmp_path / "moved")
    callback = SpectralMonitor(every=2, budget=None, sinks=None)
    trainer(tmp_path / "new", callback, max_steps=10).train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert remembered_steps(callback, NAMES[0]) == [2, 4, 6, 8, 10]
    assert monitor_of(callback).alerts == ()


def test_the_state_of_another_run_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning is logged, and readings continue."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    for name in ("old", "new"):
        trainer(tmp_path / name, SpectralMonitor(every=2, budget=None, sinks=None), **saving).train()
    # As if another run's file had been copied there.
    shutil.copy(tmp_path / "new" / "checkpoint-6" / "esdmon.pt", tmp_path / "old" / "checkpoint-6" / "esdmon.pt")
    sink = MemorySink()
    callback = SpectralMonitor(every=2, budget=None, sinks=[sink])
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path / "new", callback, max_steps=10).train(
            resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-6")
        )
    assert [report.step for report in sink.reports] == [8, 10]
    assert caplog.text.count("the esdmon.pt of its checkpoint is that of another run") == 1


def test_a_state_that_cannot_be_used_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one of another version."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=None), max_steps=6, **saving).train()
    file = tmp_path / "checkpoint-6" / "esdmon.pt"
    torch.save(torch.load(file, weights_only=True) | {"version": -1}, file)
    sink = MemorySink()
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=[sink])).train(resume_from_checkpoint=True)
    assert [report.step for report in sink.reports] == [8, 12]
    assert caplog.text.count("the state in the checkpoint of step 6 cannot be loaded") == 1


@pytest.mark.parametrize("size", [0, 2000])
def test_a_state_that_was_cut_short_does_not_end_the_training(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a full disk, for example."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=None), max_steps=6, **saving).train()
    file = tmp_path / "checkpoint-6" / "esdmon.pt"
    file.write_bytes(file.read_bytes()[:size])
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=[sink]), max_steps=8).train(
        resume_from_checkpoint=True
    )
    assert [report.step for report in sink.reports] == [8]
    assert caplog.text.count("the esdmon.pt of its checkpoint cannot be read (") == 1


def test_a_state_that_cannot_be_saved_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer's checkpoint is complete, without a partial file in it."""
    callback = SpectralMonitor(every=2, budget=None, sinks=None)

    save = torch.save

    def full(state: object, file: Any, **options: Any) -> None:
        if "esdmon" in str(file):
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, file, **options)

    monkeypatch.setattr(torch, "save", full)
    fit = trainer(tmp_path, callback, save_strategy="steps", save_steps=4, max_steps=4, save_only_model=True)
    fit.train()
    assert fit.state.global_step == 4
    assert caplog.text.count("esdmon.pt could not be saved at step 4") == 1
    assert not list(tmp_path.glob("checkpoint-4/esdmon*"))
