"""Models and Trainers of Lightning for the tests of the callback."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Small(pl.LightningModule):
    """Two linear layers that are trained on noise."""

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
    """Two optimizers with manual steps: `global_step` grows by two a batch."""

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
    """Twenty batches of sixteen rows, the same in each call."""
    return DataLoader(TensorDataset(torch.randn(320, 64, generator=torch.Generator().manual_seed(1))), batch_size=16)


def trainer(folder: Path | str, *callbacks: Any, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    given: dict[str, Any] = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(given | quiet | options))
