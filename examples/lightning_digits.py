"""Lightning with one callback, which logs to the Trainer's own TensorBoard, beside the loss.

python examples/lightning_digits.py && tensorboard --logdir runs/lightning
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esdmon_lightning import SpectralMonitor


class Digits(pl.LightningModule):
    """A network of three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        """Compute and log the cross entropy."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def train(out: str = "runs/lightning", epochs: int = 5) -> SpectralMonitor:
    """Train on digits and return the callback, whose `monitor` has the last report."""
    pl.seed_everything(0, verbose=False)
    data = load_digits()
    images, labels = torch.as_tensor(data.data / 16, dtype=torch.float32), torch.as_tensor(data.target)

    monitor = SpectralMonitor(every=50)  # the one line
    best = ModelCheckpoint(monitor="esdmon_summary/stable_rank_median", mode="min")  # logged values can be monitored
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[monitor, best],
        logger=TensorBoardLogger(out, name=None),
        enable_progress_bar=False,
    )
    trainer.fit(Digits(), DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True))
    return monitor


if __name__ == "__main__":
    callback = train()
    print(callback.monitor.report if callback.monitor else "")
