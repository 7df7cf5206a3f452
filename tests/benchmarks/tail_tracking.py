"""Test whether tracking the tail of a spectrum by its eigenvectors between readings saves time on a CPU.

    python -m tests.benchmarks.tail_tracking [cost] [error]

A basis of the k eigenvectors of the tail and a quarter more is moved by one step of subspace iteration on WᵀW and a
Rayleigh-Ritz projection; alpha is that of the k largest Ritz values, with k of the last reading.

cost: CPU seconds in one thread, in turn, of square weights that look trained: a reading with all default measures; all
eigenvectors, which the basis needs at first; an update of the basis, for a tail of 5, 10 and 20 % of the eigenvalues.

error: two trainings, at each due step, the basis from every tenth: the difference in alpha from that of the same k by a
solution, and of what is reported without it, the last reading; and the largest residual of the k Ritz pairs, in λmax.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.spectrum import Spectrum
from esdmon.weights import Drift, discover
from tests.benchmarks.models import cpu_seconds, square
from tests.benchmarks.skipped import alexnet, language

SIZES = (512, 1024, 2048, 4096)
SHARES = (0.05, 0.1, 0.2)


def update(tall: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Ritz values of WᵀW, descending, the Ritz vectors, and their residuals."""
    turned, _ = torch.linalg.qr(tall.mT @ (tall @ basis))
    image = tall @ turned
    values, small = torch.linalg.eigh(image.mT @ image)
    values, small = values.flip(0), small.flip(1)
    vectors = turned @ small
    residuals = torch.linalg.vector_norm(tall.mT @ (image @ small) - vectors * values, dim=0)
    return values, vectors, residuals


def costs(size: int, repeats: int) -> None:
    """Print a line of a table."""
    generator = torch.Generator().manual_seed(0)
    layer = square(size, generator)
    known = Plugins()
    reader = Reader(
        nn.ModuleDict({"w": layer}), known, ReadingOptions(choose_measures("default", known.measures)), drift=Drift()
    )
    weight = layer.weight.detach()
    rows = []
    for step in range(repeats):
        read = cpu_seconds(lambda step=step: reader.read_one("w", step))  # type: ignore[misc]
        whole = cpu_seconds(lambda: torch.linalg.eigh(weight.mT @ weight))
        row = [read, whole]
        for share in SHARES:
            basis = torch.randn(size, int(1.25 * share * size) + 8, generator=generator)
            row.append(cpu_seconds(lambda basis=basis: update(weight, basis)))  # type: ignore[misc]
        rows.append(row)
    read, whole, *updates = (statistics.median(column) for column in zip(*rows, strict=True))
    cells = [f"{read * 1e3:.0f} ms", f"{whole / read:.1f}", *(f"{each / read:.2f}" for each in updates)]
    print(f"| {size} | {' | '.join(cells)} |", flush=True)


def errors(make: Callable[[int], tuple[nn.Module, object, object]], steps: int, every: int) -> None:
    """Print the quantiles of a training's errors."""
    torch.manual_seed(0)
    model, _, training = make(steps)
    matrices = [matrix for matrix in discover(model).matrices if matrix.stack_shape()[0] == 1]
    kept: dict[str, tuple[int, Tensor, float]] = {}
    rows: list[tuple[float, float, float]] = []
    for step, _ in enumerate(training, start=1):  # type: ignore[arg-type]
        if step % every == 0:
            for matrix in matrices:
                stack = matrix.to_stack(matrix.read().detach())[0].float()
                tall = stack if stack.shape[0] >= stack.shape[1] else stack.mT
                lam, vectors = torch.linalg.eigh((tall.double().mT @ tall.double()) / len(tall))
                if step // every % 10 == 1:
                    law = Spectrum.from_eigenvalues(np.sort(lam.abs().numpy()), shape=(len(tall), len(lam))).power_law
                    if law is None:
                        continue
                    k = law.n_tail
                    size = min(len(lam), int(1.25 * k) + 8)
                    kept[matrix.name] = k, vectors[:, -size:].flip(1).float(), _alpha(lam.flip(0), k)
                elif matrix.name in kept:
                    k, basis, before = kept[matrix.name]
                    values, basis, residuals = update(tall, basis)
                    now = _alpha(lam.flip(0), k)
                    found = _alpha(values.double() / len(tall), k)
                    rows.append((abs(found - now), abs(before - now), float(residuals[:k].max() / values[0])))
                    kept[matrix.name] = k, basis, before
        if step >= steps:
            break
    print(f"{make.__doc__} {steps} steps, every={every}, {len(kept)} matrices, {len(rows)} updates")
    for title, column in zip(("alpha, tracked", "alpha, as last read", "residual"), np.array(rows).T, strict=True):
        print(
            f"  {title:20} " + "/".join(f"{value:.0e}" for value in np.quantile(column, (0.5, 0.95, 1.0))), flush=True
        )


def _alpha(descending: Tensor, k: int) -> float:
    """Return 1 + k/Σ ln(λ/xmin) of the k largest."""
    top = descending[:k].double()
    return 1 + k / float((top / top[-1]).log().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["cost", "error"], choices=["cost", "error"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "cost" in options.what:
        print("| M = N | reading | all vectors | " + " | ".join(f"tail {share:.0%}" for share in SHARES) + " |")
        print("|---|---|---|---|---|---|")
        for size in SIZES:
            costs(size, options.repeats)
    if "error" in options.what:
        print("quantiles: median/95 %/all")
        errors(alexnet, 3000, 50)
        errors(language, 1500, 50)


if __name__ == "__main__":
    main()
