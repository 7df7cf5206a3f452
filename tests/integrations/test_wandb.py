"""The sink in a real run of Weights & Biases, offline, whose file is read back."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from esdmon.errors import InputError
from esdmon_wandb import WandbSink
from tests.integrations import wandb_files

PLAIN = """
    model = nn.Sequential(nn.Linear(128, 96), nn.Linear(96, 70))
    with wandb.init(mode=MODE, dir=FOLDER, settings=SETTINGS) as run:
        monitor = esdmon.watch(model, every=10, budget=None, sinks=["wandb", f"jsonl:{FOLDER}/a.jsonl"])
        for step in range(1, 31):
            monitor.step()
            run.log({"loss": 1 / step})
        monitor.close()
        assert monitor.errors == (), monitor.errors
        assert wandb.run is run
"""
LIGHTNING = """
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import WandbLogger
    from torch.utils.data import DataLoader, TensorDataset
    from esdmon_lightning import SpectralMonitor

    class Small(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
        def training_step(self, batch, index):
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = WandbLogger(save_dir=FOLDER, offline=True, settings=SETTINGS)
    callback = SpectralMonitor(every=10, budget=None)
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], logger=logger, accelerator="cpu", log_every_n_steps=5,
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(Small(), DataLoader(TensorDataset(torch.randn(300, 64)), batch_size=10))
    assert callback.monitor.errors == (), callback.monitor.errors
    wandb.finish()
"""
TRAINER = """
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from esdmon_transformers import SpectralMonitor

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ids = torch.arange(16)
    os.environ["WANDB_MODE"] = "offline"
    arguments = TrainingArguments(FOLDER, max_steps=30, per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True,
                                  report_to="wandb", logging_steps=5, save_strategy="no")
    callback = SpectralMonitor(every=10, budget=None)
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 60,
            callbacks=[callback]).train()
    assert callback.monitor.errors == (), callback.monitor.errors
    wandb.finish()
"""
AUTO = """
    os.chdir(FOLDER)
    with wandb.init(mode=MODE, dir=FOLDER, settings=SETTINGS):
        with esdmon.watch(nn.Linear(64, 64), every=1) as monitor:
            monitor.step()
    (folder,) = os.listdir("runs")
    assert os.listdir(f"runs/{folder}") == ["esdmon.jsonl"], os.listdir(f"runs/{folder}")
"""
ALERT = """
    weight = nn.Parameter(torch.randn(96, 128))
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight
    with wandb.init(mode=MODE, dir=FOLDER, settings=SETTINGS):
        with esdmon.watch(Module(), every=1, budget=None, sinks="wandb") as monitor:
            monitor.step()
            weight.data[3, 3] = float("nan")
            monitor.step()
"""
ENDED = """
    sink = esdmon.sinks.MemorySink()
    run = wandb.init(mode=MODE, dir=FOLDER, settings=SETTINGS)
    monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks=["wandb", sink])
    monitor.step()
    run.finish()
    for _ in range(4):
        monitor.step()
    monitor.close()
    assert len(sink.reports) == 5
    assert [(fault.who, fault.disabled) for fault in monitor.errors] == [("sink wandb", True)], monitor.errors
"""


def run(script: str, folder: Path, mode: str = "offline") -> None:
    """In a process of its own: after the first run of a process W&B does not look at its environment again."""
    start = f"""
        import os, torch, wandb, esdmon, esdmon.sinks
        from torch import nn
        torch.manual_seed(0)
        MODE, FOLDER = {mode!r}, {str(folder)!r}
        SETTINGS = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    """
    end = "wandb.teardown()\n"
    whole = textwrap.dedent(start) + textwrap.dedent(script) + end
    places = {
        name: str(folder / name) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    }
    for place in places.values():
        Path(place).mkdir(exist_ok=True)

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", whole],
        env=os.environ | places | {"WANDB_SILENT": "true", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def numbers(rows: list[dict[str, Any]]) -> set[str]:
    """The keys of scalars; a histogram has several parts behind its key."""
    return {key for row in rows for key, value in row.items() if key.startswith("esdmon_") and is_number(value)}


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def test_each_reading_is_a_row_over_an_axis_of_its_own(tmp_path: Path) -> None:
    """All measures of all layers in it, none of the user's rows lost; each key is defined by its name."""
    run(PLAIN, tmp_path)
    rows = wandb_files.rows(tmp_path)
    ours = [row for row in rows if "esdmon/step" in row]
    assert [row["esdmon/step"] for row in ours] == [10, 20, 30]
    assert len([row for row in rows if "loss" in row]) == 30
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    alphas = [record["alpha"] for record in records if record.get("name") == "0"]
    assert [row["esdmon_alpha/0"] for row in ours] == alphas
    axes = wandb_files.axes(tmp_path)
    assert len(numbers(ours)) > 50
    assert {axes[key] for key in numbers(ours)} == {"esdmon/step"}
    assert ours[0]["esdmon_esd/0/_type"] == "histogram"
    assert sum(ours[0]["esdmon_esd/0/values"]) == records[0]["n_eigenvalues"]
    assert axes["esdmon_esd/0"] == "esdmon/step"
    assert [row["esdmon_phases/nrows"] for row in rows if "esdmon_phases/nrows" in row] == [2]


@pytest.mark.parametrize(("script", "axis"), [(LIGHTNING, "trainer/global_step"), (TRAINER, "train/global_step")])
def test_in_a_trainers_run_readings_stand_under_its_axis_too(script: str, axis: str, tmp_path: Path) -> None:
    """In the run that the Trainer has begun, which its `*` does not take from their own axis."""
    run(script, tmp_path)
    ours = [row for row in wandb_files.rows(tmp_path) if "esdmon/step" in row]
    assert len(ours) == 3
    assert all(row[axis] == row["esdmon/step"] for row in ours)
    axes = wandb_files.axes(tmp_path)
    assert {axes[key] for key in numbers(ours)} == {"esdmon/step"}
    losses = [row for row in wandb_files.rows(tmp_path) if {"loss", "train/loss"} & row.keys()]
    assert len(losses) >= 5


def test_an_active_run_is_where_auto_writes(tmp_path: Path) -> None:
    """And a JSONL; no TensorBoard that nobody looks at."""
    run(AUTO, tmp_path)
    assert [row["esdmon/step"] for row in wandb_files.rows(tmp_path) if "esdmon/step" in row] == [1]


def test_an_alert_is_an_alert_of_the_run(tmp_path: Path) -> None:
    """With the rule in its title and the layer in its text."""
    run(ALERT, tmp_path)
    ((title, text, level, milliseconds),) = wandb_files.alerts(tmp_path)
    assert title == "esdmon: non_finite firing"
    assert "1 of 12288 elements are NaN or infinite; at step 1 it was not so, at step 2" in text
    assert level == "ERROR"
    assert milliseconds == 1000  # in which W&B would drop a second one of that title; by default a minute


def test_a_run_that_ends_early_loses_that_sink_and_nothing_else(tmp_path: Path) -> None:
    """The other sinks go on."""
    run(ENDED, tmp_path)


def test_a_disabled_run_is_no_fault(tmp_path: Path) -> None:
    """Nothing is written, nothing fails."""
    run(PLAIN, tmp_path, mode="disabled")
    assert not list(tmp_path.rglob("run-*.wandb"))


def test_without_a_run_it_is_told_before_training() -> None:
    """And what to do."""
    with pytest.raises(InputError, match=r"wandb has no active run: call wandb.init\(\) before"):
        WandbSink.open("")
    with pytest.raises(InputError, match="wandb takes no target, got 'wandb:here'"):
        WandbSink.open("here")
