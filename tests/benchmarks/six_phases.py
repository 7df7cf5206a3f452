"""Draw the picture of the six phases for the documentation: one matrix of each, from the ensembles of known phase.

python -m tests.benchmarks.six_phases docs/images/six_phases.png
"""

import sys

import matplotlib as mpl
import numpy as np
import torch

import esdmon
from tests.benchmarks.ensembles import ENSEMBLES
from tests.matrices import with_eigenvalues

SHAPE = (1024, 384)
CHOSEN = ("noise", "at the edge", "spikes, replaced", "tail from the edge", "population 1.7-2.7", "decayed bulk")
SEED = 1


def matrices() -> dict[str, torch.Tensor]:
    """Return a matrix of each phase by its name, with eigenvectors in random directions."""
    rng = np.random.default_rng(SEED)
    made = {}
    for name in CHOSEN:
        phase, draw = ENSEMBLES[name]
        eigenvalues = draw(rng, *SHAPE).eigenvalues
        made[phase.value] = torch.from_numpy(with_eigenvalues(rng, eigenvalues, SHAPE[0])).float()
    return made


def main(path: str) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    report = esdmon.analyze(matrices())
    figure, grid = plt.subplots(2, 3, figsize=(12.5, 6.8), layout="constrained")
    for axes, layer in zip(grid.flat, report, strict=True):
        if layer.phase.value != layer.name:
            raise ValueError(f"the matrix of {layer.name} is read as {layer.phase.value}: choose another SEED")
        layer.plot(axes)
        handles = axes.get_legend_handles_labels()[0]
        axes.get_legend().remove()
        axes.set_title(layer.name, loc="left", fontweight="bold")
        axes.set_title(f"α {layer.alpha_text}", loc="right")
        if layer.name == "heavy-tailed":  # whose panel has all lines
            labels = ["eigenvalues", "noise that fits the bulk", "its edge λ⁺", "power law; dashed: not meaningful"]
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
