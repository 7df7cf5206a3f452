"""Hosts that log to Weights & Biases themselves: their rows are as without esdmon."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.integrations import wandb_files
from tests.integrations.wandb_runs import numbers, ours, run

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
            if index % 7 == 0:
                wandb.log({"index": index})
            return loss
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(folder, callbacks):
        logger = WandbLogger(save_dir=folder, offline=True, settings=SETTINGS)
        trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, logger=logger, accelerator="cpu", log_every_n_steps=5,
                             enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        trainer.fit(Small(), DataLoader(TensorDataset(torch.randn(300, 64)), batch_size=10))
    make = lambda: SpectralMonitor(every=10, budget=None)
"""
TRAINER = """
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from esdmon_transformers import SpectralMonitor

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ids = torch.arange(16)

    def train(folder, callbacks):
        wandb.init(mode="offline", dir=folder, settings=SETTINGS)
        arguments = TrainingArguments(folder, max_steps=30, per_device_train_batch_size=2, use_cpu=True,
                                      disable_tqdm=True, report_to="wandb", logging_steps=5, save_strategy="no",
                                      include_num_input_tokens_seen="no")
        Trainer(GPT2LMHeadModel(config), arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 60,
                callbacks=callbacks).train()
    make = lambda: SpectralMonitor(every=10, budget=None)
"""
ACCELERATE = """
    import accelerate
    from esdmon_transformers import tracker_sinks

    def train(folder, callbacks):
        accelerator = accelerate.Accelerator(log_with="wandb", project_dir=folder, cpu=True)
        accelerator.init_trackers("p", init_kwargs={"wandb": {"settings": SETTINGS, "dir": folder, "mode": "offline"}})
        model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for callback in callbacks:
            callback.monitor = esdmon.watch(model, optimizer, every=2, budget=None, sinks=tracker_sinks(accelerator))
        for epoch in range(4):
            for _ in range(6):
                loss = model(torch.randn(16, 64)).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            accelerator.log({"loss": loss.item(), "epoch": epoch}, step=epoch)
        for callback in callbacks:
            callback.monitor.close()
        accelerator.end_training()
    make = types.SimpleNamespace
"""
HOSTS = {"lightning": LIGHTNING, "trainer": TRAINER, "accelerate": ACCELERATE}
ALL = """
    import os, sys, json, types, traceback, torch, wandb, esdmon
    from torch import nn

    SETTINGS = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True,
                              x_save_requirements=False)
    folder, scripts, failed = sys.argv[1], json.loads(sys.argv[2]), {}
    for host, script in scripts.items():
        names = dict(globals())
        try:
            exec(script, names)
            for which in ("without", "with"):
                os.makedirs(f"{folder}/{host}/{which}")
                torch.manual_seed(0)
                callbacks = [names["make"]()] if which == "with" else []
                names["train"](f"{folder}/{host}/{which}", callbacks)
                wandb.finish()
            assert callbacks[0].monitor.errors == (), callbacks[0].monitor.errors
        except Exception:
            failed[host] = traceback.format_exc()
    wandb.teardown()
    with open(f"{folder}/failed.json", "w") as file:
        json.dump(failed, file)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which each host has trained without esdmon and with it."""
    folder = tmp_path_factory.mktemp("hosts")
    scripts = json.dumps({name: textwrap.dedent(script) for name, script in HOSTS.items()})
    run(["-c", textwrap.dedent(ALL), str(folder), scripts], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_rows_of_a_host_are_as_without_esdmon(host: str, hosts: Path) -> None:
    """Its pattern `*` does not take readings from their own axis, and its axis gets no value from a reading."""
    failed = json.loads((hosts / "failed.json").read_text())
    assert host not in failed, failed[host]
    place, without = hosts / host / "with", hosts / host / "without"
    assert len(wandb_files.users(without)) >= 4
    assert timeless(wandb_files.users(place)) == timeless(wandb_files.users(without))
    assert len(ours(place)) >= 3
    axes = wandb_files.axes(place)
    assert {axes[key] for key in numbers(ours(place))} == {"esdmon/step"}


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without what a Trainer measures of its speed."""
    return [{key: value for key, value in row.items() if not re.search("runtime|_per_second", key)} for row in rows]
