"""`esdmon demo`: train the paper's MiniAlexNet, scaled to scikit-learn's digits, with a monitor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from esdmon.errors import InputError, MissingExtraError, unwritable
from esdmon.present.colours import PHASE_COLOURS
from esdmon.records import LayerReport, Report, show
from esdmon.watching import watch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from esdmon.runtime.monitor import Monitor

READINGS = 40
"""Approximate number of readings in a run."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Arguments of the demo."""

    batch_size: int = 8
    lr: float = 0.004
    epochs: int = 20
    seed: int = 0
    out: str = "runs/demo"


class MiniAlexNet(nn.Sequential):
    """Two convolutions and three fully connected layers, on 1 × 16 × 16 images; FC1 is 1024 × 384, FC2 384 × 192.

    The paper's (Martin & Mahoney 2021, §5) has FC1 4096 × 384 and FC2 384 × 192 on 28 × 28 × 3 images; here the
    channels are fewer, and there is no batch normalisation. Weights start Glorot normal and biases zero, as there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(1024, 384)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(384, 192)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(192, 10)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)


def digits() -> tuple[Tensor, Tensor]:
    """Load scikit-learn's digits: images (1797, 1, 16, 16) of mean 0 and variance 1, and labels.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-learn", "demo") from error
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1)
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    return (images - images.mean()) / images.std(), torch.as_tensor(data.target)


def batches(count: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Yield batches of indices without end; each pass over the `count` examples is reshuffled."""
    shuffler = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=shuffler), batch_size)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> tuple[float, int]:
    """Take one step of cross-entropy; return the loss and the number of correct labels, both before the step."""
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images with the right label, from 0 to 1."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def run(settings: DemoOptions) -> Report:
    """Train the network and show its readings; return the last one.

    Raises:
        InputError: if `out` cannot be written, or an extra is missing.
    """
    try:
        from rich.console import Console, Group  # noqa: PLC0415 -- optional
        from rich.live import Live  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("the demo", "rich", "demo") from error
    images, labels = digits()
    if not settings.out.strip():
        raise InputError("--out is empty: give a folder for the data, such as runs/demo")
    out = _free_folder(Path(settings.out))
    torch.manual_seed(settings.seed)
    model = MiniAlexNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    per_epoch = math.ceil(len(images) / settings.batch_size)
    steps = settings.epochs * per_epoch
    console = Console()
    sinks = [f"tensorboard:{out}", f"jsonl:{out / 'esdmon.jsonl'}"]
    progress, task = _progress(steps, console)
    with (
        watch(model, optimizer, every=max(1, steps // READINGS), budget=None, sinks=sinks) as monitor,
        Live(progress, console=console, refresh_per_second=4) as live,
    ):
        right = seen = 0
        indices = itertools.islice(batches(len(images), settings.batch_size, seed=settings.seed), steps)
        for step, index in enumerate(indices, start=1):
            loss, correct = train_step(model, optimizer, images[index], labels[index])
            right, seen = right + correct, seen + len(index)
            progress.update(task, advance=1, loss=f"{loss:.4f}", accuracy=f"{right / seen:.3f}")
            if monitor.report is not None and monitor.report.step == step:
                live.update(Group(_live_table(monitor.report), progress))
            if step % per_epoch == 0:
                right = seen = 0
    return _conclude(monitor, accuracy(model, images, labels), out, console)


def _conclude(monitor: Monitor, train_accuracy: float, out: Path, console: Console) -> Report:
    report = monitor.report
    if report is None:
        msg = "no reading was taken; see the log of esdmon for the reason"
        raise InputError(msg)
    console.print(f"\n{report}\n", markup=False, highlight=False)
    lines = [f"Accuracy on the training digits: {train_accuracy:.3f}."]
    lines += [f"Alert: {alert.message}" for alert in monitor.alerts]
    lines += [f"Data: {out} (TensorBoard) and {out / 'esdmon.jsonl'}."]
    lines += [f"See it: tensorboard --logdir {out}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return report


def _free_folder(out: Path) -> Path:
    """Create and return `out`, or `out-2`, `out-3`, … if it is not empty: two runs in one folder would mix curves."""
    if out.name in ("", ".."):
        out = out.resolve()
    for folder in itertools.chain([out], (out.parent / f"{out.name}-{n}" for n in itertools.count(2))):
        if folder != out and not out.name:
            msg = f"--out {out} cannot be used: it is not empty. Choose another folder."
            raise InputError(msg)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                probe = folder / ".esdmon"
                probe.touch()
                probe.unlink()
                return folder
        except OSError as error:
            raise unwritable(f"--out {folder}", error) from error
    raise AssertionError


def _progress(steps: int, console: Console) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    progress = Progress(
        TextColumn("training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )
    return progress, progress.add_task("training", total=steps, loss="", accuracy="")


def _live_table(report: Report) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415 -- optional

    table = Table(title=f"step {report.step}", title_justify="left", expand=True)
    for column in ("layer", "phase", "alpha", "soft rank", "spikes", "stable rank"):
        table.add_column(column, justify="left" if column in ("layer", "phase") else "right", no_wrap=True)
    for layer in report:
        table.add_row(layer.name, *_cells(layer))
    return table


def _cells(layer: LayerReport) -> list[str]:
    if layer.status != "ok":
        return [f"[red]{layer.status}[/]"]
    alpha = show(layer, "alpha", ".2f")
    return [
        f"[{PHASE_COLOURS[layer.shown_phase]}]{layer.shown_phase.value}[/]",
        alpha if layer.alpha_is_meaningful else f"[bright_black]({alpha})[/]",
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
        show(layer, "stable_rank", ".1f"),
    ]
