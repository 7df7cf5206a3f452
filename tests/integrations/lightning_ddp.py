"""A job of two ranks with Lightning, as a user's script: python lightning_ddp.py FOLDER.

Trained twice: without a rule to stop on, and with one. Each rank writes its results, and is a fork of this process.
Run by test_lightning_ranks.py.
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esdmon_lightning import SpectralMonitor
from tests.ranks import fork
from tests.rules import ALWAYS


class Small(pl.LightningModule):
    """Two linear layers that are trained on noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        loss: Tensor = (self.net(batch[0]) - 1).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    for name, stop_on in (("not-asked", ()), ("asked", ("always",))):
        train(f"{folder}/{name}", stop_on)


def train(folder: str, stop_on: tuple[str, ...]) -> None:
    pl.seed_everything(0, verbose=False)
    monitor = SpectralMonitor(
        every=5,
        budget=None,
        alerts=[ALWAYS],
        stop_on=stop_on,
        save_on=stop_on,
        sinks=f"jsonl:{folder}/a.jsonl",
    )
    best = pl.callbacks.ModelCheckpoint(folder, monitor="esdmon_summary/stable_rank_median", mode="max")
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[monitor, best],
        logger=False,
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Small(), DataLoader(TensorDataset(torch.randn(320, 64)), batch_size=8))
    result = {
        "steps": trainer.global_step,
        "metric": float(trainer.callback_metrics["esdmon_summary/stable_rank_median"]),
        "errors": len(monitor.monitor.errors) if monitor.monitor else -1,
    }
    Path(f"{folder}/rank-{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
