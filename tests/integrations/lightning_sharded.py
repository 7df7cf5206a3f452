"""A job of two ranks with Lightning whose weights FSDP2 shards: python lightning_sharded.py FOLDER.

Each rank writes what it has read, and is a fork of this process. Run by test_lightning_ranks.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from esdmon_lightning import SpectralMonitor
from tests.integrations.lightning_ddp import Small
from tests.ranks import fork


class Sharded(Small):
    """The same with layers that do not divide evenly, sharded where Lightning says."""

    device_mesh: Any

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 97), nn.Tanh(), nn.Linear(97, 64))
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    monitor = SpectralMonitor(every=4, budget=None, sinks=f"jsonl:{folder}/a.jsonl")
    trainer = pl.Trainer(
        max_steps=20,
        callbacks=[monitor],
        logger=False,
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Sharded()
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(320, 64)), batch_size=8))
    weight: Any = model.net[0].weight
    result = {
        "steps": trainer.global_step,
        "norm": float(weight.full_tensor().norm()),
        "errors": [fault.message for fault in monitor.monitor.errors] if monitor.monitor else ["no monitor"],
    }
    Path(f"{folder}/rank-{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
