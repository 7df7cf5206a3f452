"""Run the checks of `esdmon doctor`: readings of known spectra, a training with a monitor, and its files."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from esdmon.analysis import analyze
from esdmon.errors import MissingExtraError
from esdmon.records import LayerReport
from esdmon.replay.loading import load
from esdmon.selftest.harness import Check, Machine, Row, verdict
from esdmon.spectrum import Phase
from esdmon.testing import check_host
from esdmon.watching import watch

_STEPS = 40
_SPIKES = (6.0, 8.0, 10.0, 12.0, 14.0)
"""Strengths of the spikes, in units of the smallest one that leaves the bulk of noise (Baik, Ben Arous, Péché 2005)."""
_ALPHA = 2.5


def spectra(machine: Machine) -> Iterator[Row]:
    """Read matrices with a known phase, number of spikes, rank or exponent."""
    report = analyze({name: weight.to(machine.device) for name, weight in _known().items()})
    wrong = [f"{layer.name}: {text}" for layer in report for text in _expected(layer)]
    yield verdict(wrong, f"{len(report)} matrices of known phase, spikes, rank and exponent")


def _known() -> dict[str, torch.Tensor]:
    """Return noise, noise with spikes, a power law, and a matrix of half rank, 512 × 256."""
    random = torch.Generator().manual_seed(0)
    n, m = 512, 256
    noise = torch.randn(n, m, generator=random)
    left = torch.linalg.qr(torch.randn(n, m, generator=random))[0]
    right = torch.linalg.qr(torch.randn(m, m, generator=random))[0]
    count = len(_SPIKES)
    weakest = (n * m) ** 0.25
    quantiles = (torch.arange(m) + 0.5) / m
    eigenvalues = quantiles ** (-1 / (_ALPHA - 1))
    return {
        "noise": noise,
        "spikes": noise + left[:, :count] * (weakest * torch.tensor(_SPIKES)) @ right[:, :count].mT,
        "power law": left * (n * eigenvalues).sqrt() @ right.mT,
        "half rank": left[:, : m // 2] @ right[:, : m // 2].mT * noise.std(),
    }


def _expected(layer: LayerReport) -> Iterator[str]:
    """Yield the faults in the reading of a known matrix."""
    phase = {
        "noise": Phase.RANDOM_LIKE,
        "spikes": Phase.BULK_SPIKES,
        "power law": Phase.HEAVY_TAILED,
        "half rank": Phase.RANK_COLLAPSE,
    }[layer.name]
    if layer.phase is not phase:
        yield f"{layer.phase.value}, not {phase.value} ({layer.reason or layer.explanation})"
    exact = {"spikes": ("n_spikes", len(_SPIKES)), "half rank": ("hard_rank", layer.M // 2)}.get(layer.name)
    if exact and layer.measures[exact[0]] != exact[1]:
        yield f"{exact[0]} is {layer.measures[exact[0]]}, not {exact[1]}"
    if layer.name == "power law" and not abs(layer.measures["alpha"] - _ALPHA) < 0.1:
        yield f"alpha is {layer.measures['alpha']:.3f}, not about {_ALPHA}"


def training(machine: Machine) -> Iterator[Row]:
    """Train with and without a monitor, and compare losses, weights and random numbers bit by bit."""
    problem = []
    try:
        check_host(lambda watched: _train(machine, sinks=[] if watched else None))
    except AssertionError as error:
        problem.append(str(error))
    yield verdict(problem, f"{_STEPS} steps with and without a watch are the same to the last bit")


def files(machine: Machine) -> Iterator[Row]:
    """Write the files of a training into a temporary folder, and read them back."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "esdmon.jsonl")
        _train(machine, sinks=[f"jsonl:{path}"])
        steps = [report.step for report in load(path).reports]
        expected = list(range(10, _STEPS + 1, 10))
        wrong = [] if steps == expected else [f"steps {steps} in the JSONL, not {expected}"]
        yield verdict(wrong, f"a JSONL of {len(steps)} readings, {path.stat().st_size} bytes, read back", "jsonl")
        try:
            _train(machine, sinks=[f"tensorboard:{folder}/tensorboard"])
        except MissingExtraError as error:
            yield Row("SKIP", str(error), "tensorboard")
            return
        yield _events(Path(folder, "tensorboard"))


def _events(folder: Path) -> Row:
    """Return a row on the event files of a run, read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 -- optional

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("esdmon_")]
    wrong = [] if tags else [f"no scalar of esdmon in {[path.name for path in folder.iterdir()]}"]
    return verdict(wrong, f"event files with {len(tags)} charts, read back", "tensorboard")


def _train(machine: Machine, *, sinks: list[str] | None) -> tuple[list[float], nn.Module]:
    """Train a small network from a fixed seed, watched if there is a list of sinks; return losses and model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).to(machine.device)
        inputs = torch.randn(_STEPS, 16, 64).to(machine.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = None if sinks is None else watch(model, optimizer, every=10, sinks=sinks, budget=None, strict=True)
        losses = []
        try:
            for batch in inputs:
                loss = (model(batch) - batch).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        finally:
            if monitor is not None:
                monitor.close()
    return losses, model


QUICK_CHECKS = (Check("spectra", spectra), Check("training", training), Check("files", files))
"""The checks in order; together they take some seconds."""
