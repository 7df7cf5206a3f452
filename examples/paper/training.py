"""Train by a `Recipe` and save the `Result`; a run that is on disk already is loaded.

A run that was interrupted resumes from its last checkpoint with the same result, since random numbers are seeded for
each epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import esdmon
from esdmon.sinks import MemorySink
from esdmon.spectrum import Phase, PhaseReading, Spectrum
from examples.paper import data, networks

READINGS = 20
"""Approximate number of readings in a run."""
_SECONDS = 60  # between checkpoints, at least
_KEPT = ("alpha", "mp_soft_rank", "stable_rank", "matrix_entropy", "n_spikes", "lambda_max", "bulk_sigma", "hard_rank")

NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "MiniAlexNet": networks.mini_alexnet,
    "small AlexNet": networks.small_alexnet,
    "LeNet5": networks.lenet5,
    "MLP3": networks.mlp3,
    "SETOL MLP3": networks.setol_mlp3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a run."""

    network: str = "small AlexNet"
    data: str = "digits"
    """`digits`, `generated`, `cifar10:FOLDER` or `mnist:FOLDER`."""
    batch_size: int = 16
    lr: float = 0.004
    epochs: int = 40
    seed: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    dropout: float = 0.0
    optimizer: str = "SGD"
    summed: bool = False
    """Sum the loss over the batch, as in SETOL, instead of averaging it."""
    label_noise: float = 0.0
    difficulty: float = 0.5

    @property
    def name(self) -> str:
        """Name of the run, also of its file: network, data, batch size, rate, and settings that are not the default."""
        usual = Recipe()
        parts = [self.network, self.data.replace("/", "-").replace(":", "-"), f"b{self.batch_size}", f"lr{self.lr:g}"]
        parts += [
            f"{field.name}-{getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in ("network", "data", "batch_size", "lr")
            and getattr(self, field.name) != getattr(usual, field.name)
        ]
        return " ".join(parts).replace(" ", "_")


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    recipe: Recipe
    train_accuracy: float
    test_accuracy: float
    train_loss: float
    diverged: bool
    seconds: float
    layers: dict[str, dict[str, Any]]
    """The record of each layer at the end, with every measure: see `esdmon.Report.to_records`."""
    shuffled: dict[str, dict[str, Any]]
    """Records of a copy with the elements of each weight in random order: a null with the layer's own elements."""
    history: dict[str, dict[str, list[float]]]
    """Layer -> measure -> its values at the epochs in `history["epoch"]["epoch"]`."""
    path: Path
    shapes: dict[str, tuple[int, int]]
    """N × M of the weight of each layer, dead rows and columns included."""

    @cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """Load the spectrum of each fully connected layer at the end."""
        with np.load(self.path.with_suffix(".npz")) as file:
            return {name: Spectrum.from_eigenvalues(file[name], shape=self.shapes[name]) for name in file.files}

    @cached_property
    def phases(self) -> dict[str, PhaseReading]:
        """Return the phase of each of these layers, from its record: eigenvalues alone do not show scales of rows."""
        return {
            name: PhaseReading(
                Phase(record["phase"]),
                record["phase_confidence"],
                record["explanation"],
                alpha_is_meaningful=record["alpha_is_meaningful"],
                over_regularized=record["over_regularized"],
            )
            for name, record in self.layers.items()
            if name in self.spectra
        }

    def measure(self, layer: str, name: str) -> float:
        """Return a measure of a layer at the end; NaN if it is undefined."""
        value = self.layers[layer].get(name)
        return math.nan if value is None else float(value)


def run(recipe: Recipe, folder: Path, *, device: torch.device, progress: Callable[[float], None]) -> Result:
    """Train by a recipe, or load its result from an earlier call.

    Args:
        recipe: settings of the run.
        folder: folder of results and checkpoints.
        device: device to train on.
        progress: called after each epoch with the share that is done, from 0 to 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe.name}.json"
    if not path.exists():
        _train(recipe, path, device, progress)
    progress(1.0)
    return _read(recipe, path)


@lru_cache(maxsize=4)
def dataset(name: str, network: str, label_noise: float, difficulty: float) -> data.Dataset:
    """Load a data set by its name, in the image size of a network."""
    kind, _, folder = name.partition(":")
    if kind == "cifar10":
        return data.cifar10(Path(folder))
    if kind == "mnist":
        return data.mnist(Path(folder))
    size = 16 if network == "small AlexNet" else 28
    if kind == "generated":
        return data.generated(size=size, label_noise=label_noise, difficulty=difficulty)
    return data.digits(size=size, channels=3 if network == "MLP3" else 1)


def make(recipe: Recipe, channels: int) -> nn.Sequential:
    """Return the initialised network."""
    torch.manual_seed(recipe.seed)
    if recipe.network in ("MiniAlexNet", "small AlexNet"):
        return NETWORKS[recipe.network](channels=channels, dropout=recipe.dropout)
    return NETWORKS[recipe.network]()


def _train(recipe: Recipe, path: Path, device: torch.device, progress: Callable[[float], None]) -> None:
    start = time.perf_counter()
    given = dataset(recipe.data, recipe.network, recipe.label_noise, recipe.difficulty).to(device)
    model = make(recipe, given.shape[0]).to(device)
    optimizer = _optimizer(recipe, model)
    per_epoch = math.ceil(len(given.train) / recipe.batch_size)
    sink = MemorySink()
    every = max(1, per_epoch * recipe.epochs // READINGS)
    monitor = esdmon.watch(model, optimizer, every=every, budget=None, sinks=[sink], layers=["fc*"], alerts=None)
    checkpoint = _Checkpoint(path.with_suffix(".pt"), model, optimizer, monitor)
    first, history, before = checkpoint.load()
    history = history or {"epoch": {"epoch": []}}
    with monitor:
        for epoch in range(first, recipe.epochs):
            for images, labels in _batches(given.train, recipe, epoch):
                loss = _step(model, optimizer, images, labels, summed=recipe.summed)
            while sink.reports:
                _remember(history, sink.reports.pop(0), per_epoch)
            progress((epoch + 1) / recipe.epochs)
            if not math.isfinite(loss):
                break
            checkpoint.save(epoch + 1, history, before + time.perf_counter() - start)
    _write(path, recipe, model, given, history=history, seconds=before + time.perf_counter() - start)
    checkpoint.path.unlink(missing_ok=True)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "Adadelta":
        return torch.optim.Adadelta(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "Adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _batches(split: data.Split, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch, in an order that depends on seed and epoch; dropout is seeded too."""
    torch.manual_seed(1_000_003 * (recipe.seed + 1) + epoch)
    order = torch.randperm(len(split)).to(split.images.device)
    for index in torch.split(order, recipe.batch_size):
        yield split.images[index], split.labels[index]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, *, summed: bool) -> float:
    model.train(len(images) > 1)  # batch norm has no variance of a single image
    loss = functional.cross_entropy(model(images), labels, reduction="sum" if summed else "mean")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return float(loss.detach())


def _remember(history: dict[str, dict[str, list[float]]], report: esdmon.Report, per_epoch: int) -> None:
    history["epoch"]["epoch"].append(report.step / per_epoch)
    for layer in report:
        values = history.setdefault(layer.name, {})
        for name in _KEPT:
            values.setdefault(name, []).append(layer.measures.get(name, math.nan))
        values.setdefault("phase", []).append(layer.phase.code)


class _Checkpoint:
    """Saves and restores the state of a run, at most once a minute."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, monitor: esdmon.Monitor) -> None:
        self.path = path
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "monitor": monitor}
        self._saved = time.monotonic()

    def load(self) -> tuple[int, dict[str, dict[str, list[float]]], float]:
        """Return (epochs done, history, seconds taken); all zero or empty if there is no checkpoint."""
        if not self.path.exists():
            return 0, {}, 0.0
        state = torch.load(self.path, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return state["epoch"], state["history"], state["seconds"]

    def save(self, epoch: int, history: dict[str, dict[str, list[float]]], seconds: float) -> None:
        """Save if the last save is a minute ago; replaced atomically, so an interruption keeps the last one."""
        if time.monotonic() - self._saved < _SECONDS:
            return
        state = {name: part.state_dict() for name, part in self._parts.items()}
        partial = self.path.with_suffix(".partial")
        torch.save(state | {"epoch": epoch, "history": history, "seconds": seconds}, partial)
        partial.replace(self.path)
        self._saved = time.monotonic()


def _write(
    path: Path, recipe: Recipe, model: nn.Sequential, given: data.Dataset, *, history: dict[str, Any], seconds: float
) -> None:
    model.eval()
    report = esdmon.analyze(model, layers=["fc*"], measures="all", precision="exact")
    spectra = {
        layer.name: _eigenvalues(model.get_submodule(layer.name).weight) for layer in report if layer.status == "ok"
    }
    arrays: dict[str, Any] = {name: lam.astype(np.float32) for name, lam in spectra.items()}
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    shuffled = {f"{name}.weight": _shuffle(model.get_submodule(name).weight) for name in spectra}
    train_accuracy, train_loss = _evaluate(model, given.train)
    result = {
        "recipe": asdict(recipe),
        "train_accuracy": train_accuracy,
        "test_accuracy": _evaluate(model, given.test)[0],
        "train_loss": train_loss if math.isfinite(train_loss) else None,
        "diverged": not math.isfinite(train_loss),
        "seconds": seconds,
        "layers": {record["name"]: record for record in report.to_records()},
        "shapes": {name: _shape(model.get_submodule(name).weight) for name in spectra},
        "shuffled": {record["name"]: record for record in esdmon.analyze(shuffled).to_records()} if shuffled else {},
        "history": history,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
    partial.replace(path)


def _eigenvalues(weight: Tensor | nn.Module) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return λ of WᵀW/N, ascending, from singular values in float64."""
    assert isinstance(weight, Tensor)
    singular = torch.linalg.svdvals(weight.detach().double().cpu()).numpy()
    lam: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.sort(singular**2) / max(weight.shape)
    return lam


def _shape(weight: Tensor | nn.Module) -> tuple[int, int]:
    assert isinstance(weight, Tensor)
    return max(weight.shape), min(weight.shape)


def _shuffle(weight: Tensor | nn.Module) -> Tensor:
    assert isinstance(weight, Tensor)
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    return weight.detach().cpu().flatten()[order].reshape(weight.shape)


def _evaluate(model: nn.Module, split: data.Split) -> tuple[float, float]:
    """Compute (accuracy, loss) on a set."""
    right, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in zip(torch.split(split.images, 500), torch.split(split.labels, 500), strict=True):
            logits = model(images)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return right / len(split), loss / len(split)


def _read(recipe: Recipe, path: Path) -> Result:
    found = json.loads(path.read_text(encoding="utf-8"))
    loss = found["train_loss"]
    return Result(
        recipe=recipe,
        train_accuracy=found["train_accuracy"],
        test_accuracy=found["test_accuracy"],
        train_loss=math.nan if loss is None else loss,
        diverged=found["diverged"],
        seconds=found["seconds"],
        layers=found["layers"],
        shuffled=found["shuffled"],
        history=found["history"],
        path=path,
        shapes={name: (n, m) for name, (n, m) in found["shapes"].items()},
    )
