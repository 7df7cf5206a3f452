"""The callback in the real Trainer of Lightning."""

import copy
import csv
import inspect
import json
import logging
import math
import os
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esdmon
import esdmon.schedule
from esdmon.errors import InputError
from esdmon.options import WatchKeywords
from esdmon.sinks import MemorySink
from esdmon_lightning import SpectralMonitor
from tests.rules import ALWAYS

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning warns of much: few workers, small batches, its own dependencies
]


class Small(pl.LightningModule):
    """Two layers on noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))

    def loss(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = (self.net(batch[0]) - 1).square().mean()
        return loss

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Adversarial(Small):
    """Two optimizers, stepped by hand: `global_step` grows by two a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], _index: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]


def batches() -> DataLoader[tuple[Tensor, ...]]:
    """Twenty of sixteen, the same each time."""
    return DataLoader(TensorDataset(torch.randn(320, 64, generator=torch.Generator().manual_seed(1))), batch_size=16)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    given: dict[str, Any] = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(given | quiet | options))


def monitor_of(callback: SpectralMonitor) -> esdmon.Monitor:
    assert callback.monitor is not None
    return callback.monitor


def test_readings_stand_under_the_loss_in_each_logger(tmp_path: Path) -> None:
    """TensorBoard and CSV: the same numbers, at the x where Lightning draws what is logged in the same batch."""
    callback = SpectralMonitor(every=5, budget=None)
    board, table = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    trainer(tmp_path, callback, logger=[board, table]).fit(Small(), batches())
    events = EventAccumulator(board.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    losses = [point.step for point in events.Scalars("loss")]
    points = events.Scalars("esdmon_alpha/net.0")
    assert [losses.index(point.step) for point in points] == [4, 9, 14, 19]  # of the 5th, 10th … batch
    rows = list(csv.DictReader((Path(table.log_dir) / "metrics.csv").open()))
    in_csv = {int(row["step"]): float(row["esdmon_alpha/net.0"]) for row in rows if row["esdmon_alpha/net.0"]}
    assert in_csv == pytest.approx({point.step: point.value for point in points})
    report = monitor_of(callback).report
    assert report is not None
    assert (report.step, report.host_step) == (20, 19)
    assert [layer.name for layer in report] == ["net.0", "net.2"]
    assert all(layer.in_optimizer for layer in report)
    assert monitor_of(callback).errors == ()


def test_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Weights and random numbers, with validation in between."""

    def weights(*callbacks: Any) -> list[Tensor]:
        model = Small()
        trainer(tmp_path, *callbacks, max_epochs=2).fit(model, batches(), batches())
        return [*model.parameters(), torch.get_rng_state()]

    plain = weights()
    for mode in ("sync", "thread"):
        watched = weights(SpectralMonitor(every=1, budget=None, mode=mode))
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_other_callbacks_can_monitor_the_summary(tmp_path: Path) -> None:
    """ModelCheckpoint and EarlyStopping, by its tag."""
    name = "esdmon_summary/stable_rank_median"
    best = ModelCheckpoint(tmp_path / "best", monitor=name, mode="max", filename="best")
    early = EarlyStopping(monitor=name, mode="max", patience=0, min_delta=1e9)
    fit = trainer(tmp_path, SpectralMonitor(every=5, budget=None), best, early, max_epochs=5, enable_checkpointing=True)
    fit.fit(Small(), batches(), batches())
    assert best.best_model_score is not None
    assert float(fit.callback_metrics[name]) == pytest.approx(float(best.best_model_score), rel=0.2)
    assert fit.current_epoch < 5  # it has not grown by a thousand million


def test_a_resumed_fit_goes_on_without_gap_or_doubling(tmp_path: Path) -> None:
    """Stopped at the end of an epoch, resumed from the Trainer's checkpoint: the readings of one run."""
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
    assert len(monitor_of(second)._alert_manager._memory._read["net.0"]) == 6


def test_a_checkpoint_without_the_callback_can_be_resumed_with_it(tmp_path: Path) -> None:
    """The steps go on from the Trainer's."""
    first = trainer(tmp_path)
    first.fit(Small(), batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    sink = MemorySink()
    second = SpectralMonitor(every=6, budget=None, sinks=[sink])
    trainer(tmp_path, second, max_epochs=2).fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert [report.step for report in sink.reports] == [24, 30, 36]


def test_fitting_twice_goes_on(tmp_path: Path) -> None:
    """With the steps and the history of the first time."""
    sink = MemorySink()
    fit = trainer(tmp_path, SpectralMonitor(every=8, budget=None, sinks=[sink]))
    model = Small()
    fit.fit(model, batches())
    fit.fit_loop.max_epochs = 2
    fit.fit(model, batches())
    assert [report.step for report in sink.reports] == [8, 16, 24, 32, 40]
    assert sink.reports[2]["net.0"].update_ratio > 0


def test_each_trainer_has_a_run_of_its_own(tmp_path: Path) -> None:
    """One callback for several folds: nothing of a fold is lost, and nothing of it judges the next."""
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
    assert len(monitor_of(callback)._alert_manager._memory._read["net.0"]) == 4
    assert summary_steps(file) == [5, 10, 15, 20, 5, 10, 15, 20]


def test_another_model_on_the_same_trainer_is_another_run(tmp_path: Path) -> None:
    """The steps are the Trainer's; the history is of that model."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, callback)
    fit.fit(Small(), batches())
    fit.fit_loop.max_epochs = 2
    fit.fit(Small(), batches())
    assert [layer.step for layer in monitor_of(callback)._alert_manager._memory._read["net.0"]] == [25, 30, 35, 40]


def test_a_checkpoint_of_another_trainer_is_not_taken(tmp_path: Path) -> None:
    """What is loaded counts for the fit that loads it; a state that cannot be used ends nothing."""
    first = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, first)
    fit.fit(Small(), batches())
    second = SpectralMonitor(every=5, budget=None, sinks=None)
    second.load_state_dict(first.state_dict())
    trainer(tmp_path, second).fit(Small(), batches())
    assert [layer.step for layer in monitor_of(second)._alert_manager._memory._read["net.0"]] == [5, 10, 15, 20]
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["callbacks"]["SpectralMonitor"]["version"] = -1
    torch.save(saved, tmp_path / "last.ckpt")
    trainer(tmp_path, second, max_epochs=2).fit(Small(), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert [layer.step for layer in monitor_of(second)._alert_manager._memory._read["net.0"]] == [25, 30, 35, 40]


class Watching(pl.Callback):
    """Keeps what stands under a name of ours when training starts."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.at_start = {name for name in trainer.callback_metrics if name.startswith("esdmon_summary/")}


@pytest.mark.parametrize("quantity", ["stable_rank_median", "alpha_median", "alert_non_finite", "layers_not_ok"])
def test_what_is_monitored_is_there_from_the_start(quantity: str, tmp_path: Path) -> None:
    """By default the first reading would be after ten epochs of twenty batches: one is taken before each look."""
    name = f"esdmon_summary/{quantity}"
    best = ModelCheckpoint(tmp_path / "best", monitor=name, mode="max", save_top_k=-1)
    early = EarlyStopping(monitor=name, mode="max", patience=10)
    sink, watching = MemorySink(), Watching()
    fit = trainer(
        tmp_path, SpectralMonitor(sinks=[sink]), watching, best, early, max_epochs=3, enable_checkpointing=True
    )
    fit.fit(Small(), batches(), batches())
    assert name in watching.at_start
    assert fit.global_step == 60  # stopped by nobody
    assert [report.step for report in sink.reports] == [20, 40, 60]
    assert len(best.best_k_models) == 3
    assert all(torch.isfinite(score) for score in best.best_k_models.values())


@pytest.mark.parametrize(
    ("options", "checkpoint", "steps"),
    [
        ({"val_check_interval": 8}, {}, [8, 16, 20]),
        ({"val_check_interval": 6, "accumulate_grad_batches": 4}, {}, [1, 3, 4, 5]),
        ({"max_steps": 7}, {}, [7]),
        ({}, {"every_n_train_steps": 9}, [9, 18, 20]),
        ({}, {"train_time_interval": timedelta(0)}, [1, 20]),
    ],
    ids=["in-mid-epoch", "accumulated", "max-steps", "by-steps", "by-time"],
)
def test_a_reading_is_taken_before_each_look(
    options: dict[str, Any], checkpoint: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    """Whenever that is; in a thread it is waited for."""
    sink = MemorySink()
    best = ModelCheckpoint(tmp_path / "best", monitor="esdmon_summary/stable_rank_median", save_top_k=-1, **checkpoint)
    monitor = SpectralMonitor(mode="thread", sinks=[sink])
    trainer(tmp_path, monitor, best, enable_checkpointing=True, **options).fit(Small(), batches(), batches())
    assert [report.step for report in sink.reports] == steps
    assert best.best_k_models
    assert all(torch.isfinite(score) for score in best.best_k_models.values())


def test_a_number_that_never_is_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slip of the pen, and a measure that is not taken."""
    names = ["esdmon_summary/stable_rank_medain", "esdmon_summary/alpha_median"]
    early = [EarlyStopping(name, strict=False, check_finite=False, patience=9) for name in names]
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, SpectralMonitor(measures=["stable_rank"], sinks=None, alerts=None), *early).fit(
            Small(), batches()
        )
    first, second = (record.getMessage() for record in caplog.records if record.name == "esdmon")
    assert "EarlyStopping monitors esdmon_summary/stable_rank_medain, which is no number of ours." in first
    assert "Did you mean 'esdmon_summary/stable_rank_median'" in first
    assert "EarlyStopping monitors esdmon_summary/alpha_median, which is not known: add 'alpha' to measures=" in second


class Plain(Logger):
    """As Lightning's documentation has a logger: without an `experiment`."""

    name, version = "plain", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(name.startswith("esdmon") for name in metrics):
            self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_loggers_of_any_kind_get_the_numbers(tmp_path: Path) -> None:
    """Also where they have no experiment."""
    plain = Plain()
    callback = SpectralMonitor(every=5, budget=None)
    trainer(tmp_path, callback, logger=plain).fit(Small(), batches())
    assert plain.steps == [4, 9, 14, 19]
    assert monitor_of(callback).errors == ()


def test_a_callback_is_copied_and_pickled(tmp_path: Path) -> None:
    """Before and after training, with any schedule; a copy has the options, and no part in the run."""
    every = esdmon.schedule.union(esdmon.schedule.per_decade(3), 7)
    callback = SpectralMonitor(every=every, budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    for _ in range(2):
        for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301 -- our own
            assert again.monitor is None
            assert again.state_dict() == {}
            assert again._given.options == {"every": every, "budget": None}
        trainer(tmp_path, callback, max_steps=2).fit(Small(), batches())


def test_the_options_are_those_of_watch() -> None:
    """By name and type; the defaults are those of `watch` itself."""
    watched = inspect.signature(esdmon.watch, eval_str=True).parameters
    own = {"model", "optimizer", "every", "sinks", "hook", "first_step"}
    expected = {name: parameter.annotation for name, parameter in watched.items() if name not in own}
    assert get_type_hints(WatchKeywords) == expected


def test_the_options_can_stand_in_a_file_of_lightnings_command_line(tmp_path: Path) -> None:
    """In `init_args`, as for any callback."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    pytest.importorskip("jsonargparse.typing")
    config = {
        "callbacks": [
            {
                "class_path": "esdmon_lightning.SpectralMonitor",
                "init_args": {"every": 5, "budget": None, "layers": ["net.*"], "sinks": [f"jsonl:{tmp_path}/a.jsonl"]},
            }
        ],
        "accelerator": "cpu",
        "logger": False,
    }
    made = cli.LightningCLI(Small, run=False, args={"trainer": config}, save_config_callback=None)
    (callback,) = [each for each in made.trainer.callbacks if isinstance(each, SpectralMonitor)]
    assert callback._given.options == {"every": 5, "budget": None, "layers": ["net.*"]}


def test_several_optimizers_and_steps_by_hand(tmp_path: Path) -> None:
    """A due step between two counts of `global_step` is not missed."""
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=[sink])).fit(Adversarial(), batches())
    assert [report.step for report in sink.reports] == [6, 10, 16, 20, 26, 30, 36, 40]
    assert all(layer.in_optimizer for layer in sink.reports[-1])


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """Twenty batches, five steps."""
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=2, budget=None, sinks=[sink]), accumulate_grad_batches=4).fit(
        Small(), batches()
    )
    assert [report.step for report in sink.reports] == [2, 4]


def test_fast_dev_run_and_sanity_check_write_nothing(tmp_path: Path) -> None:
    """One batch to see that all runs; and two validation batches before training, which are no steps."""
    callback = SpectralMonitor(every=1, budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    trainer(tmp_path, callback, fast_dev_run=True).fit(Small(), batches(), batches())
    assert monitor_of(callback).steps == 1
    assert not (tmp_path / "a.jsonl").exists()
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=1, budget=None, sinks=[sink]), num_sanity_val_steps=2).fit(
        Small(), batches(), batches()
    )
    assert sink.reports[0].step == 1


def test_weights_that_are_averaged_for_validation_are_not_read(tmp_path: Path) -> None:
    """What trains is read."""
    sink = MemorySink()
    averaging = WeightAveraging(avg_fn=lambda averaged, _now, _count: averaged)
    monitor = SpectralMonitor(every=10, budget=None, sinks=[sink])
    model = Small()
    trainer(tmp_path, monitor, averaging, max_epochs=1).fit(model, batches(), batches())
    plain = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=10, budget=None, sinks=[plain])).fit(Small(), batches(), batches())
    norms = [[report["net.0"].measures["frobenius_norm"] for report in s.reports] for s in (sink, plain)]
    assert norms[0] == norms[1]


def test_an_exception_closes_and_passes(tmp_path: Path) -> None:
    """What was read is written."""

    class Failing(Small):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 7:
                raise RuntimeError("the user's own")
            return super().training_step(batch, index)

    callback = SpectralMonitor(every=1, budget=None, mode="thread", sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(tmp_path, callback).fit(Failing(), batches())
    steps = [line.partition('"step": ')[2] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert steps
    monitor_of(callback).step()
    assert monitor_of(callback).steps == 7


@pytest.mark.parametrize(("stop_on", "batches_run"), [((), 20), ("always", 5)], ids=["not-asked", "asked"])
def test_it_stops_where_it_is_asked_to(stop_on: Any, batches_run: int, tmp_path: Path) -> None:
    """And only there."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], stop_on=stop_on)
    fit = trainer(tmp_path, callback)
    fit.fit(Small(), batches())
    assert fit.global_step == batches_run
    assert [alert.rule for alert in monitor_of(callback).alerts] == ["always"]


def test_a_file_of_alerts_stops_it(tmp_path: Path) -> None:
    """The first batch that is read finds NaN."""
    file = tmp_path / "alerts.toml"
    file.write_text('[rules.non_finite]\nseverity = "critical"\n[actions]\nstop_training = ["non_finite"]')
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=str(file))
    model = Small()
    model.get_parameter("net.0.weight").data[0, 0] = math.nan
    fit = trainer(tmp_path, callback)
    fit.fit(model, batches())
    assert fit.global_step == 5
    (alert,) = monitor_of(callback).alerts
    assert (alert.rule, alert.severity, alert.layers) == ("non_finite", "critical", ("net.0", "net.2"))
    file.write_text("[rules.non_finit]")
    with pytest.raises(InputError, match=r"alerts\.toml: unknown key 'rules\.non_finit'.*Did you mean 'non_finite'"):
        SpectralMonitor(alerts=str(file))


def test_a_checkpoint_that_cannot_be_saved_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an alert's, and the training would have gone on without it."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    fit = trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], save_on=["always"]))
    monkeypatch.setattr(fit, "save_checkpoint", full)
    fit.fit(Small(), batches())
    assert fit.global_step == 20
    assert caplog.text.count("the checkpoint of save_on= could not be saved: OSError") == 1


def test_a_damaged_state_in_a_checkpoint_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers too: one line, and readings go on."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None)
    fit = trainer(tmp_path, callback)
    monkey = callback.setup

    def damaged(trainer: Any, pl_module: Any, stage: str) -> None:
        monkey(trainer, pl_module, stage)
        callback.load_state_dict({"steps": "x", "summary": 5})

    callback.setup = damaged  # type: ignore[method-assign]
    fit.fit(Small(), batches())
    assert fit.global_step == 20
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("save_on", [(), ("always",)], ids=["not-asked", "asked"])
def test_it_saves_a_checkpoint_where_it_is_asked_to(save_on: Any, tmp_path: Path) -> None:
    """Once for an alert; one that Lightning can go on from."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], save_on=save_on)
    trainer(tmp_path, callback).fit(Small(), batches())
    saved = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ckpt"))
    assert saved == (["esdmon-checkpoints/step=5.ckpt"] if save_on else [])
    if save_on:
        again = trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS]))
        again.fit(Small(), batches(), ckpt_path=tmp_path / saved[0])
        assert again.global_step == 20
        assert [alert.step for callback in again.callbacks for alert in callback.monitor.alerts] == [5]  # type: ignore[attr-defined]


def test_an_alert_is_seen_in_the_trainers_tensorboard(tmp_path: Path) -> None:
    """As text, and as a scalar that says in how many layers it fires."""
    board = TensorBoardLogger(tmp_path)
    callback = SpectralMonitor(every=5, budget=None, alerts=[ALWAYS])
    trainer(tmp_path, callback, logger=board).fit(Small(), batches())
    events = EventAccumulator(board.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    assert [point.value for point in events.Scalars("esdmon_summary/alert_always")] == [1, 1, 1, 1]
    (text,) = events.Tensors("esdmon_alert/always/model/text_summary")
    assert b"**warning, firing** always: it holds, at step 5." in text.tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every= must be a number of steps, 1 or more"),
        ({"budget": -0.1}, "budget= must be a share of the run, above 0 and at most 1"),
        ({"sinks": "tensorbord:x"}, "no sink 'tensorbord'.*Did you mean 'tensorboard'"),
        ({"measures": ["alhpa"]}, "Unknown measure 'alhpa' in measures=. Did you mean 'alpha"),
        ({"mode": "fast"}, "mode= must be one of auto, sync, thread; got 'fast'"),
        ({"stop_on": "rank_colapse"}, "stop_on='rank_colapse' names no rule in use.*Did you mean 'rank_collapse'"),
        ({"evry": 10}, "Unknown option evry=. Did you mean 'every'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_told_when_it_is_made(options: dict[str, Any], message: str) -> None:
    """Long before training."""
    with pytest.raises(InputError, match=message.replace("()", r"\(\)")):
        SpectralMonitor(**options)


def test_two_on_one_trainer_are_refused(tmp_path: Path) -> None:
    """Before training."""
    with pytest.raises((InputError, RuntimeError), match=r"two SpectralMonitors|callback"):
        trainer(tmp_path, SpectralMonitor(sinks=None), SpectralMonitor(sinks=None)).fit(Small(), batches())


def test_without_loggers_readings_go_to_a_file_of_each_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the folder that the Trainer writes to; one line says so, and nothing is alarming."""
    callback = SpectralMonitor(every=5, budget=None)
    with caplog.at_level(logging.INFO, "esdmon"):
        trainer(tmp_path, callback).fit(Small(), batches())
        trainer(tmp_path, callback).fit(Small(), batches())
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert files == [tmp_path / f"esdmon-{run}" / "esdmon.jsonl" for run in (1, 2)]
    for file in files:
        assert summary_steps(file) == [5, 10, 15, 20]
    ours = [record for record in caplog.records if record.name == "esdmon"]
    assert {record.levelname for record in ours} == {"INFO"}
    assert [record.getMessage() for record in ours if "readings go to" in record.getMessage()] == [
        f"esdmon: readings go to jsonl:{file}" for file in files
    ]


def summary_steps(file: Path) -> list[int]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == "summary"]


@pytest.fixture(scope="module", params=["lightning.pytorch", "pytorch_lightning"])
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two ranks that has trained without a rule to stop on, and with one."""
    folder, here = tmp_path_factory.mktemp("ranks"), Path(__file__)
    script = here.with_name("lightning_ddp.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), request.param, str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[2] / "integrations")])},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("stop_on", "steps"), [("not-asked", 20), ("asked", 5)])
def test_two_ranks_agree(stop_on: str, steps: int, two_ranks: Path) -> None:
    """On when to stop, and on what ModelCheckpoint looks at; one writes. In both packages of Lightning."""
    folder = two_ranks / stop_on
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert (first["steps"], first["errors"]) == (steps, 0)
    records = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    summaries = [record["step"] for record in records if record["kind"] == "summary"]
    assert summaries == list(range(5, steps + 1, 5))
    assert len(list(folder.rglob("esdmon-checkpoints/*.ckpt"))) == (stop_on == "asked")
