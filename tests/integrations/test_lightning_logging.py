"""Where the callback of Lightning writes: the Trainer's loggers, or a file."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from esdmon.sinks import MemorySink
from esdmon_lightning import SpectralMonitor
from tests.event_files import events_of
from tests.integrations.lightning_runs import Small, batches, trainer
from tests.integrations.runs import monitor_of, summary_steps
from tests.rules import ALWAYS

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_readings_are_at_the_x_of_the_loss_in_each_logger(tmp_path: Path) -> None:
    """TensorBoard and CSV have the same numbers, at the x of what is logged in the same batch."""
    callback = SpectralMonitor(every=5, budget=None)
    board, table = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    trainer(tmp_path, callback, logger=[board, table]).fit(Small(), batches())
    written = events_of(board.log_dir)
    losses = [point.step for point in written.Scalars("loss")]
    points = written.Scalars("esdmon_stable_rank/net.0")
    assert [losses.index(point.step) for point in points] == [4, 9, 14, 19]  # of the 5th, 10th … batch
    rows = list(csv.DictReader((Path(table.log_dir) / "metrics.csv").open()))
    in_csv = {int(row["step"]): float(row["esdmon_stable_rank/net.0"]) for row in rows if row["esdmon_alpha/net.0"]}
    assert in_csv == pytest.approx({point.step: point.value for point in points})
    report = monitor_of(callback).report
    assert report is not None
    assert (report.step, report.host_step) == (20, 19)
    assert [layer.name for layer in report] == ["net.0", "net.2"]
    assert all(layer.in_optimizer for layer in report)
    assert monitor_of(callback).errors == ()


class Plain(Logger):
    """A logger without an `experiment`, as in the documentation of Lightning."""

    name, version = "plain", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(name.startswith("esdmon") for name in metrics):
            self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_loggers_of_any_kind_get_the_numbers(tmp_path: Path) -> None:
    """A logger without an experiment gets them by `log_metrics`."""
    plain = Plain()
    callback = SpectralMonitor(every=5, budget=None)
    trainer(tmp_path, callback, logger=plain).fit(Small(), batches())
    assert plain.steps == [4, 9, 14, 19]
    assert monitor_of(callback).errors == ()


def test_an_alert_is_in_the_trainers_tensorboard(tmp_path: Path) -> None:
    """As text, and as a scalar with the number of layers in which it fires."""
    board = TensorBoardLogger(tmp_path)
    callback = SpectralMonitor(every=5, budget=None, alerts=[ALWAYS])
    trainer(tmp_path, callback, logger=board).fit(Small(), batches())
    written = events_of(board.log_dir)
    assert [point.value for point in written.Scalars("esdmon_summary/alert_always")] == [1, 1, 1, 1]
    (text,) = written.Tensors("esdmon_alert/always/model/text_summary")
    assert b"**warning, firing** always: it holds, at step 5." in text.tensor_proto.string_val[0]


def test_without_loggers_readings_go_to_a_file_of_each_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In `default_root_dir`; one line at INFO names the file, and nothing is a warning."""
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


def test_fast_dev_run_and_sanity_check_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fast_dev_run writes nothing, however short it is; batches of the sanity check are not counted as steps."""
    trainer(tmp_path, SpectralMonitor(), fast_dev_run=True).fit(Small(), batches(), batches())
    assert "nothing was read" not in caplog.text
    callback = SpectralMonitor(every=1, budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    trainer(tmp_path, callback, fast_dev_run=True).fit(Small(), batches(), batches())
    assert monitor_of(callback).steps == 1
    assert not (tmp_path / "a.jsonl").exists()
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=1, budget=None, sinks=[sink]), num_sanity_val_steps=2).fit(
        Small(), batches(), batches()
    )
    assert sink.reports[0].step == 1
