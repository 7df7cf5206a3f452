"""The paper's main finding on a CPU in a few minutes: smaller batches, heavier spectra.

Trains MiniAlexNet on scikit-learn's digits at batch sizes 512 to 2, everything else the same, and shows how the spectra
of its two fully connected layers move through the phases of training:

    python examples/batch_size_sweep.py --out runs/sweep

After Martin & Mahoney, "Implicit self-regularization in deep neural networks", JMLR 22 (2021) 165, §7.
"""

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import esdmon
from esdmon.cli.digits import MiniAlexNet, accuracy, batches, digits, train_step
from esdmon.spectrum import Spectrum, mp_density, mp_edges

SIZES = (512, 128, 32, 8, 2)
LAYERS = ("fc1", "fc2")
MARGINS = {"left": 0.04, "right": 0.98, "bottom": 0.1, "top": 0.94}


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of training at one batch size."""

    batch_size: int
    accuracy: float
    report: esdmon.Report
    spectra: dict[str, Spectrum]


def train(batch_size: int, *, epochs: int, seed: int, out: Path) -> Run:
    """Train at one batch size; a monitor writes its curves to TensorBoard under `out`."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = MiniAlexNet()
    # The largest rate of those tried (.002 to .005) at which batch size 2 still trains.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.004, momentum=0.9)
    steps = epochs * math.ceil(len(images) / batch_size)
    with esdmon.watch(
        model, optimizer, every=max(1, steps // 20), budget=None, sinks=f"tensorboard:{out / f'batch-{batch_size}'}"
    ):
        for index in itertools.islice(batches(len(images), batch_size, seed=seed), steps):
            train_step(model, optimizer, images[index], labels[index])
    spectra = {name: spectrum_of(model.get_submodule(name).weight) for name in LAYERS}
    return Run(batch_size, accuracy(model, images, labels), esdmon.analyze(model, layers=LAYERS), spectra)


def spectrum_of(weight: torch.Tensor | torch.nn.Module) -> Spectrum:
    """Compute the eigenvalues of WᵀW/N from the singular values of W."""
    assert isinstance(weight, torch.Tensor)
    shape = (max(weight.shape), min(weight.shape))
    singular = torch.linalg.svdvals(weight.detach().double()).numpy()
    return Spectrum.from_eigenvalues(singular**2 / shape[0], shape=shape)


def describe(run: Run) -> str:
    """Format one line of the table."""
    cells = [f"{run.batch_size:5d}  {run.accuracy:8.3f}"]
    for name in LAYERS:
        layer = run.report[name]
        values = layer.measures
        cells.append(f"{layer.phase.value:<13} {values['mp_soft_rank']:6.3f} {values['n_spikes']:4.0f}")
    return "  ".join(cells)


def draw(runs: list[Run], path: Path) -> None:
    """Draw the spectra of both layers at each batch size, and the soft rank against the batch size."""
    figure = Figure(figsize=(13, 8))
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(2, 1)))
    panels = upper.subplots(
        len(LAYERS), len(runs), squeeze=False, gridspec_kw=MARGINS | {"hspace": 0.6, "wspace": 0.12}
    )
    for row, name in zip(panels, LAYERS, strict=True):
        for axes, run in zip(row, runs, strict=True):
            draw_spectrum(axes, run.spectra[name])
            axes.set_title(f"{name}, batch {run.batch_size}: {run.report[name].phase.value}", fontsize=10)
    axes = lower.subplots(gridspec_kw=MARGINS | {"bottom": 0.22, "top": 0.98})
    positions = range(len(runs))
    for name, marker in zip(LAYERS, "os", strict=True):
        ranks = [run.report[name].measures["mp_soft_rank"] for run in runs]
        axes.plot(positions, ranks, marker=marker, label=f"{name}: MP soft rank λ⁺/λmax")
    axes.plot(positions, [run.accuracy for run in runs], "k:", label="accuracy on the training digits")
    axes.set_xticks(positions, [str(run.batch_size) for run in runs])
    axes.set(xlabel="batch size", ylim=(0, 1.05))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def draw_spectrum(axes: Axes, spectrum: Spectrum) -> None:
    """Draw a histogram of log₁₀ λ, the Marchenko-Pastur law of its bulk, and ticks for eigenvalues above the edge."""
    bulk = spectrum.bulk
    assert bulk is not None
    log_lam = np.log10(spectrum.eigenvalues / bulk.sigma2)
    axes.hist(log_lam, bins=60, density=True, color="#9db7d5")
    low, high = mp_edges(spectrum.q)
    lam = np.linspace(low, high, 400)[1:-1]
    axes.plot(np.log10(lam), mp_density(lam, spectrum.q) * lam * np.log(10), color="#c0392b", lw=1.5)
    above = log_lam[log_lam.size - bulk.n_spikes :]
    axes.plot(above, np.zeros_like(above), "|", color="#c0392b", ms=14, clip_on=False)
    axes.set(xlabel="log₁₀ λ/σ²", yticks=[])


def main() -> None:
    """Train at each batch size, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    options = parser.parse_args()
    print("batch  accuracy  fc1: phase, soft rank, spikes  fc2: the same", flush=True)
    runs = []
    for size in options.sizes:
        runs.append(train(size, epochs=options.epochs, seed=options.seed, out=options.out))
        print(describe(runs[-1]), flush=True)
    draw(runs, options.out / "sweep.png")
    print(f"The picture: {options.out / 'sweep.png'}. The curves: tensorboard --logdir {options.out}")


if __name__ == "__main__":
    main()
