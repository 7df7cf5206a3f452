"""The callback in the real Trainer of Hugging Face, and trackers in a loop with Accelerate."""

import copy
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import optuna
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import esdmon
import esdmon.schedule
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor, attach, tracker_sinks
from tests.rules import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves

NAMES = ["transformer.h.0.attn.c_attn/q", "transformer.h.0.attn.c_attn/k", "transformer.h.0.attn.c_attn/v"]


class Tokens(Dataset[dict[str, Tensor]]):
    """Sixteen numbers in a row, from anywhere."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        ids = (torch.arange(16) + 7 * k) % 50
        return {"input_ids": ids, "labels": ids}


def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    return model


def trainer(folder: Path, *callbacks: Any, model: nn.Module | None = None, **options: Any) -> Trainer:
    """Twelve steps an epoch."""
    given = {"num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1, "report_to": []} | options
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, seed=3, **given
    )
    return Trainer(model or network(), arguments, train_dataset=Tokens(), callbacks=list(callbacks))


def monitor_of(callback: SpectralMonitor) -> esdmon.Monitor:
    assert callback.monitor is not None
    return callback.monitor


def scalars(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [point.step for point in events.Scalars(tag)]


def test_readings_stand_beside_the_trainers_in_tensorboard(tmp_path: Path) -> None:
    """In a folder of our own in that of the run, at the steps of its loss; the loss is all there."""
    callback = SpectralMonitor(every=4, budget=None)
    trainer(tmp_path, callback, report_to=["tensorboard"]).train()
    (run,) = (tmp_path / "runs").iterdir()
    assert scalars(run, "train/loss") == list(range(1, 13))
    assert scalars(run / "esdmon", f"esdmon_alpha/{NAMES[0]}") == [4, 8, 12]
    report = monitor_of(callback).report
    assert report is not None
    assert [layer.name for layer in report][:3] == NAMES
    assert "lm_head" not in report
    assert all(layer.in_optimizer for layer in report)
    assert monitor_of(callback).errors == ()


def test_where_no_logger_was_asked_for_readings_go_to_a_file_of_each_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default of transformers: one line says where, and a resumed run goes on in its file."""
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
    told = [record.getMessage() for record in caplog.records if "readings go to" in record.getMessage()]
    assert told == [f"esdmon: readings go to jsonl:{file}" for file in (files[0], files[0], files[1])]


def summary_steps(file: Path) -> list[int]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == "summary"]


def test_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Weights, losses and random numbers."""

    def run(*callbacks: Any) -> tuple[list[Tensor], list[Any]]:
        fit = trainer(tmp_path, *callbacks)
        fit.train()
        losses = [row.get("loss") for row in fit.state.log_history]
        return [*fit.model.parameters(), torch.get_rng_state()], losses

    plain, losses = run()
    assert len([loss for loss in losses if loss is not None]) == 12
    for mode in ("sync", "thread"):
        watched, watched_losses = run(SpectralMonitor(every=1, budget=None, sinks=None, mode=mode))
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
        assert watched_losses == losses


def test_a_resumed_training_goes_on_without_gap_or_doubling(tmp_path: Path) -> None:
    """From a checkpoint in mid-run."""
    sinks = [MemorySink() for _ in range(2)]
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path / "a", SpectralMonitor(every=4, budget=None, sinks=[sinks[0]])).train()
    trainer(tmp_path / "b", SpectralMonitor(every=4, budget=None, sinks=None), **saving).train()
    second = SpectralMonitor(every=4, budget=None, sinks=[sinks[1]])
    trainer(tmp_path / "b", second, **saving).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-6"))
    expected = [layer.to_record() for report in sinks[0].reports for layer in report.new if layer.step > 6]
    assert {record["step"] for record in expected} == {8, 12}
    assert [layer.to_record() for report in sinks[1].reports for layer in report.new] == expected
    assert [layer.step for layer in monitor_of(second)._alert_manager._memory._read[NAMES[0]]] == [4, 8, 12]


def test_a_checkpoint_without_the_callback_can_be_resumed_and_saved_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer's next save asks for a state that the checkpoint did not have."""
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


def test_a_callback_that_the_trainer_makes_anew_is_the_same(tmp_path: Path) -> None:
    """As it does on resume, where it is asked to restore callbacks."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=None), max_steps=6, **saving).train()
    again = trainer(tmp_path, SpectralMonitor(every=1), restore_callback_states_from_checkpoint=True, **saving)
    again.train(resume_from_checkpoint=True)
    (callback,) = [one for one in again.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    report = monitor_of(callback).report
    assert report is not None
    assert report.step == 12
    assert [layer.step for layer in monitor_of(callback)._alert_manager._memory._read[NAMES[0]]] == [4, 8, 12]


def test_the_state_of_the_checkpoint_that_is_resumed_is_found(tmp_path: Path) -> None:
    """In a folder of another name than `output_dir`, also one that was moved; never another run's of that step."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    trainer(tmp_path / "old", SpectralMonitor(every=2, budget=None, sinks=None), **saving).train()
    foreign = SpectralMonitor(every=3, budget=None, sinks=None, alerts=[ALWAYS])
    trainer(tmp_path / "new", foreign, **saving).train()
    shutil.move(tmp_path / "old" / "checkpoint-6", tmp_path / "moved")
    callback = SpectralMonitor(every=2, budget=None, sinks=None)
    trainer(tmp_path / "new", callback, max_steps=10).train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert [layer.step for layer in monitor_of(callback)._alert_manager._memory._read[NAMES[0]]] == [2, 4, 6, 8, 10]
    assert monitor_of(callback).alerts == ()


def test_where_the_state_is_gone_that_of_another_run_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the series goes on."""
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
    """As one of another version."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=None), max_steps=6, **saving).train()
    file = tmp_path / "checkpoint-6" / "esdmon.pt"
    torch.save(torch.load(file, weights_only=True) | {"version": -1}, file)
    sink = MemorySink()
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=[sink])).train(resume_from_checkpoint=True)
    assert [report.step for report in sink.reports] == [8, 12]
    assert caplog.text.count("the state in the checkpoint of step 6 cannot be used") == 1


@pytest.mark.parametrize("size", [0, 2000])
def test_a_state_that_was_cut_short_does_not_end_the_training(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a full disk, say."""
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
    """The Trainer's checkpoint is whole, and nothing half written lies in it."""
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


def test_options_that_json_cannot_hold_are_taken_from_the_callback_in_place(tmp_path: Path) -> None:
    """Functions, sinks, addresses; and what a user holds is what trains."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    first = SpectralMonitor(lambda step: step % 2 == 0, budget=None, sinks=[MemorySink()], on_alert=print)
    trainer(tmp_path, first, max_steps=6, **saving).train()
    sink, told = MemorySink(), list[Any]()
    second = SpectralMonitor(
        lambda step: step % 3 == 0, budget=0.5, sinks=[sink], alerts=[ALWAYS], on_alert=told.append
    )
    fit = trainer(tmp_path, second, restore_callback_states_from_checkpoint=True, **saving)
    fit.train(resume_from_checkpoint=True)
    (callback,) = [one for one in fit.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    assert [report.step for report in sink.reports] == [9, 12]
    assert [alert.rule for alert in told] == ["always"]
    assert callback._given.options["budget"] is None  # of the checkpoint
    assert monitor_of(second) is monitor_of(callback)


def test_options_that_are_lost_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that neither the checkpoint nor the callback in place has."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    int_of_numpy: Any = np.int64(2)
    trainer(tmp_path, SpectralMonitor(every=int_of_numpy, sinks=None, on_alert=print), max_steps=6, **saving).train()
    second = SpectralMonitor(every=5, sinks=None)
    with caplog.at_level(logging.WARNING, "esdmon"):
        fit = trainer(tmp_path, second, restore_callback_states_from_checkpoint=True, **saving)
        fit.train(resume_from_checkpoint=True)
    assert "the checkpoint does not hold the options on_alert, and they are not given" in caplog.text
    (callback,) = [one for one in fit.callback_handler.callbacks if isinstance(one, SpectralMonitor)]
    assert callback._given.options["every"] == 2


class TooLarge(Trainer):  # type: ignore[misc]  # transformers is half typed
    """Has no memory for more than four at once, at its fifth step."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if inputs["input_ids"].shape[0] > 4 and self.state.global_step == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return super().training_step(model, inputs, *rest, **options)


def test_an_attempt_that_was_broken_off_is_closed(tmp_path: Path) -> None:
    """Its readings are not those of the next attempt, which begins from the Trainer's steps."""
    monitors: list[esdmon.Monitor] = []

    class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is half typed
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            monitors.append(monitor_of(callback))

    callback = SpectralMonitor(every=2, budget=None, layers=["*.0.mlp.c_fc"])
    arguments = trainer(tmp_path, max_steps=8, auto_find_batch_size=True).args
    TooLarge(network(), arguments, train_dataset=Tokens(), callbacks=[callback, Keep()]).train()
    assert len(monitors) > 1
    assert all(monitor._closed for monitor in monitors)
    files = [tmp_path / f"esdmon-{run}" / "esdmon.jsonl" for run in range(1, len(monitors) + 1)]
    assert [summary_steps(file) for file in files] == [[2, 4]] * (len(monitors) - 1) + [[2, 4, 6, 8]]


class Duck:
    """An optimizer that is none of torch's; holds what it says, or says nothing."""

    def __init__(self, model: nn.Module, *, says: bool) -> None:
        self.inner_one = torch.optim.SGD(model.parameters(), lr=0.01)
        self.step, self.zero_grad = self.inner_one.step, self.inner_one.zero_grad
        self.state_dict, self.defaults = self.inner_one.state_dict, self.inner_one.defaults
        self.param_groups: Any = self.inner_one.param_groups if says else [{"lr": 0.01}]


@pytest.mark.parametrize("says", [True, False], ids=["says-what-it-holds", "does-not"])
def test_an_optimizer_that_is_none_of_torchs_trains(says: Any, tmp_path: Path) -> None:
    """It is only asked what it holds."""
    model = network()
    duck = Duck(model, says=says)
    callback = SpectralMonitor(every=2, budget=None, sinks=None)
    arguments = trainer(tmp_path, max_steps=4).args
    schedule = torch.optim.lr_scheduler.ConstantLR(duck.inner_one)
    Trainer(model, arguments, train_dataset=Tokens(), callbacks=[callback], optimizers=(duck, schedule)).train()
    report = monitor_of(callback).report
    assert report is not None
    assert report.step == 4
    assert {layer.in_optimizer for layer in report} == ({True} if says else {None})


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_each_trial_of_a_search_has_its_own(named: Any, tmp_path: Path) -> None:
    """Its curves in its own folder, its state in its own checkpoints; none in the folder of another one's."""
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
    assert [scalars(folder, "esdmon_summary/seconds") for folder in ours] == [[2, 4], [2, 4]]
    states = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("esdmon.pt"))
    assert states == [f"{name}/checkpoint-4/esdmon.pt" for name in names]


def test_a_sink_that_cannot_be_made_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and the training goes on."""
    callback = SpectralMonitor(every=4, budget=None)
    (tmp_path / "esdmon-1").write_text("in the way")
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, callback).train()
    assert monitor_of(callback).report is not None
    assert caplog.text.count("readings do not go to jsonl:") == 1
    assert "Training goes on." in caplog.text


def test_a_callback_is_copied_and_pickled(tmp_path: Path) -> None:
    """Before and after training, and by a Trainer that is copied."""
    callback = SpectralMonitor(every=esdmon.schedule.union(2, 3), budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    fit = trainer(tmp_path, callback, max_steps=4)
    for _ in range(2):
        for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301 -- our own
            assert again.monitor is None
            assert again._given.options == callback._given.options
        fit.train()
    assert copy.deepcopy(fit).callback_handler is not fit.callback_handler


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """Twelve batches, three steps."""
    sink = MemorySink()
    callback = SpectralMonitor(every=1, budget=None, sinks=[sink])
    trainer(tmp_path, callback, gradient_accumulation_steps=4).train()
    assert [report.step for report in sink.reports] == [1, 2, 3]


def test_adapters_are_watched(tmp_path: Path) -> None:
    """PEFT: the frozen base once, what the adapters add each time."""
    model = get_peft_model(network(), LoraConfig(r=16, target_modules=["c_attn"], fan_in_fan_out=True))
    sink = MemorySink()
    callback = SpectralMonitor(every=4, budget=None, sinks=[sink])
    trainer(tmp_path, callback, model=model).train()
    new = [{layer.view for layer in report.new} for report in sink.reports]
    assert new[0] >= {"base", "lora-delta"}
    assert new[1] == new[2] == {"lora-delta"}


@pytest.mark.parametrize(("stop_on", "steps"), [((), 12), ("always", 4)], ids=["not-asked", "asked"])
def test_it_stops_where_it_is_asked_to(stop_on: Any, steps: int, tmp_path: Path) -> None:
    """And only there."""
    callback = SpectralMonitor(every=4, budget=None, sinks=None, alerts=[ALWAYS], stop_on=stop_on)
    fit = trainer(tmp_path, callback)
    fit.train()
    assert fit.state.global_step == steps


@pytest.mark.parametrize("save_on", [(), ("always",)], ids=["not-asked", "asked"])
def test_it_saves_a_checkpoint_where_it_is_asked_to(save_on: Any, tmp_path: Path) -> None:
    """The Trainer's own, with the monitor's state in it; once for an alert."""
    callback = SpectralMonitor(every=4, budget=None, sinks=None, alerts=[ALWAYS], save_on=save_on)
    trainer(tmp_path, callback).train()
    saved = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("esdmon.pt"))
    assert saved == (["checkpoint-4/esdmon.pt"] if save_on else [])


def test_an_alert_is_seen_in_tensorboard_beside_the_trainers(tmp_path: Path) -> None:
    """As text, and as a scalar that says in how many layers it fires."""
    callback = SpectralMonitor(every=4, budget=None, alerts=[ALWAYS])
    trainer(tmp_path, callback, report_to="tensorboard").train()
    (folder,) = tmp_path.glob("runs/*/esdmon")
    assert scalars(folder, "esdmon_summary/alert_always") == [4, 8, 12]
    events = EventAccumulator(str(folder))
    events.Reload()
    (text,) = events.Tensors("esdmon_alert/always/model/text_summary")
    assert b"always: it holds, at step 4." in text.tensor_proto.string_val[0]


def test_an_address_is_not_in_the_trainers_checkpoint(tmp_path: Path) -> None:
    """Which is passed on."""
    sinks = ["webhook:https://127.0.0.1:1/hush", f"jsonl:{tmp_path / 'a.jsonl'}"]
    callback = SpectralMonitor(every=4, budget=None, sinks=sinks)
    trainer(tmp_path, callback, save_strategy="steps", save_steps=6).train()
    state = (tmp_path / "checkpoint-6" / "trainer_state.json").read_text()
    assert "a.jsonl" in state
    assert "hush" not in state


def test_it_is_attached_to_a_trainer_that_is_made(tmp_path: Path) -> None:
    """As to one of TRL, which makes callbacks of its own; a second time is refused."""

    class Subclass(Trainer):  # type: ignore[misc]  # transformers is half typed
        pass

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=4, save_strategy="no")
    fit = Subclass(network(), arguments, train_dataset=Tokens())
    callback = attach(fit, every=2, budget=None, sinks=None)
    with pytest.raises(InputError, match="there is a SpectralMonitor on this Trainer already"):
        attach(fit)
    fit.train()
    assert monitor_of(callback).steps == 4


def test_two_on_one_trainer_are_refused(tmp_path: Path) -> None:
    """Both would write the same series."""
    fit = trainer(tmp_path, SpectralMonitor(every=4, sinks=None), SpectralMonitor(every=2, sinks=None))
    with pytest.raises(InputError, match="there are two SpectralMonitors on this Trainer"):
        fit.train()


def test_wrong_options_are_told_when_it_is_made() -> None:
    """As in the other hosts."""
    with pytest.raises(InputError, match="every= must be a number of steps"):
        SpectralMonitor(every=0)


def test_trackers_of_accelerate_get_the_readings(tmp_path: Path) -> None:
    """TensorBoard through its own writer."""
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
    assert scalars(folder, "loss") == [1, 2, 3, 4]
    assert scalars(folder, "esdmon_alpha/Linear") == [2, 4]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two ranks that has trained without a rule to stop on, and with one."""
    folder, here = tmp_path_factory.mktemp("ranks"), Path(__file__)
    script = str(here.with_name("transformers_ddp.py"))
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, script, str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[2] / "integrations")])},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("stop_on", "steps"), [("not-asked", 12), ("asked", 4)])
def test_two_ranks_agree(stop_on: str, steps: int, two_ranks: Path) -> None:
    """On when to stop; one writes, and both have read."""
    folder = two_ranks / stop_on
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == {"steps": steps, "errors": 0}
    records = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "summary"] == list(range(4, steps + 1, 4))
    assert {record["status"] for record in records if record["kind"] == "layer"} == {"ok"}
    assert len(list(folder.rglob("esdmon.pt"))) == (stop_on == "asked")


def test_a_fault_of_ours_before_training_stops_no_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is watched then, one line says why, and the Trainer trains."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("esdmon.trainers.base.attach", broken)
    callback = SpectralMonitor(every=2)
    fit = trainer(tmp_path, callback)
    fit.train()
    assert fit.state.global_step > 0
    assert callback.monitor is None
    assert "the model cannot be watched: RuntimeError: inside. Training goes on without it." in caplog.text
