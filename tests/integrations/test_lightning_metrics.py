"""The summary as metrics that other callbacks of Lightning monitor."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from esdmon.sinks import MemorySink
from esdmon_lightning import SpectralMonitor
from tests.integrations.lightning_runs import Small, batches, trainer

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_other_callbacks_can_monitor_the_summary(tmp_path: Path) -> None:
    """ModelCheckpoint and EarlyStopping, by the tag."""
    name = "esdmon_summary/stable_rank_median"
    best = ModelCheckpoint(tmp_path / "best", monitor=name, mode="max", filename="best")
    early = EarlyStopping(monitor=name, mode="max", patience=0, min_delta=1e9)
    fit = trainer(tmp_path, SpectralMonitor(every=5, budget=None), best, early, max_epochs=5, enable_checkpointing=True)
    fit.fit(Small(), batches(), batches())
    assert best.best_model_score is not None
    assert float(fit.callback_metrics[name]) == pytest.approx(float(best.best_model_score), rel=0.2)
    assert fit.current_epoch < 5  # it has not grown by a thousand million


class MetricsAtStart(pl.Callback):
    """Keeps the names of the metrics of esdmon that exist when training starts."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.names = {name for name in trainer.callback_metrics if name.startswith("esdmon_summary/")}


@pytest.mark.parametrize("quantity", ["stable_rank_median", "alpha_median", "alert_non_finite", "layers_not_ok"])
def test_a_metric_exists_from_the_start(quantity: str, tmp_path: Path) -> None:
    """By default the first reading would be in the tenth epoch of twenty batches: one is taken in each instead."""
    name = f"esdmon_summary/{quantity}"
    best = ModelCheckpoint(tmp_path / "best", monitor=name, mode="max", save_top_k=-1)
    early = EarlyStopping(monitor=name, mode="max", patience=10)
    sink, at_start = MemorySink(), MetricsAtStart()
    fit = trainer(
        tmp_path, SpectralMonitor(sinks=[sink]), at_start, best, early, max_epochs=3, enable_checkpointing=True
    )
    fit.fit(Small(), batches(), batches())
    assert name in at_start.names
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
def test_a_reading_is_taken_before_a_metric_is_read(
    options: dict[str, Any], checkpoint: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    """By validation, at the end, every n steps or by time; a reading in a thread is waited for."""
    sink = MemorySink()
    best = ModelCheckpoint(tmp_path / "best", monitor="esdmon_summary/stable_rank_median", save_top_k=-1, **checkpoint)
    monitor = SpectralMonitor(mode="thread", sinks=[sink])
    trainer(tmp_path, monitor, best, enable_checkpointing=True, **options).fit(Small(), batches(), batches())
    assert [report.step for report in sink.reports] == steps
    assert best.best_k_models
    assert all(torch.isfinite(score) for score in best.best_k_models.values())


def test_a_metric_that_never_gets_a_value_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typo, and a measure that is not computed."""
    names = ["esdmon_summary/stable_rank_medain", "esdmon_summary/alpha_median"]
    early = [EarlyStopping(name, strict=False, check_finite=False, patience=9) for name in names]
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, SpectralMonitor(measures=["stable_rank"], sinks=None, alerts=None), *early).fit(
            Small(), batches()
        )
    first, second = (record.getMessage() for record in caplog.records if record.name == "esdmon")
    assert "EarlyStopping monitors esdmon_summary/stable_rank_medain, which esdmon does not log." in first
    assert "Did you mean 'esdmon_summary/stable_rank_median'" in first
    assert "EarlyStopping monitors esdmon_summary/alpha_median, which stays NaN" in second
    assert "Add 'alpha' to measures=" in second
