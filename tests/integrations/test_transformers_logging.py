"""Where the callback of Hugging Face writes: what `report_to` names, or a file; trackers of Accelerate."""

import logging
from pathlib import Path
from typing import Any

import accelerate
import optuna
import pytest
import torch
from torch import nn
from transformers import Trainer

import esdmon
import esdmon.schedule
from esdmon_transformers import SpectralMonitor, tracker_sinks
from tests.event_files import events_of
from tests.integrations.runs import monitor_of, scalar_steps, summary_steps
from tests.integrations.transformers_runs import NAMES, Tokens, network, trainer
from tests.rules import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves


def test_readings_are_beside_the_trainers_in_tensorboard(tmp_path: Path) -> None:
    """In a folder of our own inside the run's, at the steps of the loss; no loss is missing."""
    callback = SpectralMonitor(every=4, budget=None)
    trainer(tmp_path, callback, report_to=["tensorboard"]).train()
    (run,) = (tmp_path / "runs").iterdir()
    assert scalar_steps(run, "train/loss") == list(range(1, 13))
    assert scalar_steps(run / "esdmon", f"esdmon_stable_rank/{NAMES[0]}") == [4, 8, 12]
    report = monitor_of(callback).report
    assert report is not None
    assert [layer.name for layer in report][:3] == NAMES
    assert "lm_head" not in report
    assert all(layer.in_optimizer for layer in report)
    assert monitor_of(callback).errors == ()


def test_without_a_logger_readings_go_to_a_file_of_each_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The default of transformers: one line names the file, and a resumed run appends to it."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "save_total_limit": 1}
    callback = SpectralMonitor(every=4, budget=None)
    with caplog.at_level(logging.INFO, "esdmon"):
        trainer(tmp_path, callback, max_steps=6, **saving).train()
        trainer(tmp_path, callback, max_steps=12, **saving).train(resume_from_checkpoint=True)
        trainer(tmp_path, callback, report_to="none").train()
    files = sorted(tmp_path.rglob("*.jsonl"))
    assert files == [tmp_path / f"esdmon-{run}" / "esdmon.jsonl" for run in (1, 2)]
    assert [summary_steps(file) for file in files] == [[4, 8, 12], [4, 8, 12]]
    assert not (tmp_path / "runs").exists()
    assert {record.levelname for record in caplog.records if record.name == "esdmon"} == {"INFO"}
    logged = [record.getMessage() for record in caplog.records if "readings go to" in record.getMessage()]
    assert logged == [f"esdmon: readings go to jsonl:{file}" for file in (files[0], files[0], files[1])]


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_each_trial_of_a_search_has_folders_of_its_own(named: Any, tmp_path: Path) -> None:
    """For its curves, and for the state in its checkpoints."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    fit = Trainer(
        None,
        trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, report_to=["tensorboard"]).args,
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
        model_init=lambda _trial: network(),
        callbacks=[SpectralMonitor(every=2, budget=None, layers=["*.0.mlp.c_fc"])],
    )
    fit.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
        backend="optuna",
        n_trials=2,
        direction="minimize",
        hp_name=(lambda trial: f"trial-{trial.number}") if named else None,
    )
    names = ["trial-0", "trial-1"] if named else ["run-0", "run-1"]
    ours = {path.parent for path in tmp_path.rglob("*tfevents*") if path.parent.name.startswith("esdmon")}
    assert {folder.parent.name for folder in ours if named} == (set(names) if named else set())
    assert {folder.name for folder in ours} == ({"esdmon"} if named else {"esdmon-run-0", "esdmon-run-1"})
    assert [scalar_steps(folder, "esdmon_summary/seconds") for folder in ours] == [[2, 4], [2, 4]]
    states = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("esdmon.pt"))
    assert states == [f"{name}/checkpoint-4/esdmon.pt" for name in names]


def test_a_sink_that_cannot_be_opened_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line is logged, and training continues."""
    callback = SpectralMonitor(every=4, budget=None)
    (tmp_path / "esdmon-1").write_text("in the way")
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, callback).train()
    assert monitor_of(callback).report is not None
    assert caplog.text.count("cannot open jsonl:") == 1
    assert "No readings are written to it; training continues." in caplog.text


def test_an_alert_is_in_tensorboard_beside_the_trainers(tmp_path: Path) -> None:
    """As text, and as a scalar with the number of layers in which it fires."""
    callback = SpectralMonitor(every=4, budget=None, alerts=[ALWAYS])
    trainer(tmp_path, callback, report_to="tensorboard").train()
    (folder,) = tmp_path.glob("runs/*/esdmon")
    assert scalar_steps(folder, "esdmon_summary/alert_always") == [4, 8, 12]
    (text,) = events_of(folder).Tensors("esdmon_alert/always/model/text_summary")
    assert b"always: it holds, at step 4." in text.tensor_proto.string_val[0]


def test_trackers_of_accelerate_get_the_readings(tmp_path: Path) -> None:
    """TensorBoard through the writer of its tracker."""
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    model = nn.Linear(64, 64)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=tracker_sinks(accelerator)) as monitor:
        for step in range(1, 5):
            loss = model(torch.ones(2, 64)).sum()
            accelerator.backward(loss)
            optimizer.step()
            accelerator.log({"loss": loss.item()}, step=step)
    accelerator.end_training()
    assert monitor.errors == ()
    folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    assert scalar_steps(folder, "loss") == [1, 2, 3, 4]
    assert scalar_steps(folder, "esdmon_stable_rank/Linear") == [2, 4]
