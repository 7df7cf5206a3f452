"""Measure the cost of a screening relative to a reading, and the error of its largest eigenvalue.

    python -m tests.benchmarks.screening [cost] [error]

cost: CPU seconds, in one thread, of a reading with all default measures and of a screening, in turn, of square weights
that look trained; medians of the ratios.

error: two trainings, at each due step, of all matrices: 1 − λ/λmax of what was screened, and the residual that its
record states; the same for as many steps of the power method from its own last vector. The first screening of each
matrix, which has no vector to begin with, is counted apart.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.records import Screened
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.weights import Drift, Screener, discover
from esdmon.weights.device.screening import FIRST_STEPS, STEPS
from tests.benchmarks.models import cpu_seconds, square
from tests.benchmarks.skipped import alexnet, language

SIZES = (512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.bfloat16)


def costs(size: int, dtype: torch.dtype, repeats: int) -> tuple[float, float, float]:
    """Return the CPU seconds of a reading and of a screening, and the median of the ratio."""
    generator = torch.Generator().manual_seed(0)
    layer = square(size, generator)
    known = Plugins()
    model = nn.ModuleDict({"w": layer.to(dtype)})
    reader = Reader(model, known, ReadingOptions(choose_measures("default", known.measures)), drift=Drift())
    reader.screen("w", 0)
    pairs = []
    for step in range(1, repeats + 1):
        screened = cpu_seconds(lambda step=step: (reader.screen("w", step), reader.screened()))  # type: ignore[misc]
        read = cpu_seconds(lambda step=step: reader.read_one("w", step))  # type: ignore[misc]
        pairs.append((read, screened, read / screened))
    read, screened, ratio = (statistics.median(column) for column in zip(*pairs, strict=True))
    return read, screened, ratio


class PowerSteps:
    """The largest eigenvalue by the power method, from the vector of the last call."""

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}

    def screen(self, name: str, stack: Tensor) -> float:
        """Return the Rayleigh quotient, of the slice where it is largest."""
        tall = stack.double() if stack.shape[1] >= stack.shape[2] else stack.double().mT
        generator = torch.Generator().manual_seed(0)
        vector = self._vectors.get(name)
        steps = FIRST_STEPS if vector is None else STEPS
        if vector is None:
            vector = torch.randn(len(tall), tall.shape[2], 1, generator=generator, dtype=torch.float64)
        for _ in range(steps):
            vector = vector / vector.norm(dim=1, keepdim=True)
            image = tall @ vector
            vector = tall.mT @ image
        self._vectors[name] = vector
        return float(image.square().sum(dim=(1, 2)).max())


def errors(make: Callable[[int], tuple[nn.Module, object, object]], steps: int, every: int) -> None:
    """Print the quantiles of a training's errors."""
    torch.manual_seed(0)
    model, _, training = make(steps)
    matrices = discover(model).matrices
    screener, power = Screener(), PowerSteps()
    first: list[tuple[float, float, float]] = []
    later: list[tuple[float, float, float]] = []
    seen: set[str] = set()
    for step, _ in enumerate(training, start=1):  # type: ignore[arg-type]
        if step % every == 0:
            for matrix in matrices:
                screener.screen(matrix, step)
                (found,) = screener.take()
                stack = matrix.to_stack(matrix.read().detach())
                row = _row(found, stack, power.screen(matrix.name, stack))
                (later if matrix.name in seen else first).append(row)
                seen.add(matrix.name)
        if step >= steps:
            break
    print(f"{make.__doc__} {steps} steps, every={every}, {len(matrices)} matrices")
    for title, rows in (("first", first), ("later", later)):
        table = np.array(rows)
        close = table[table[:, 1] <= 0.01]
        print(
            f"  {title} {len(rows):4}: error {_quantiles(table[:, 0])}, residual {_quantiles(table[:, 1])}, power "
            f"method {_quantiles(table[:, 2])}; residual at most 0.01 in {len(close) / len(rows):.0%}"
            + (f", error there {_quantiles(close[:, 0])}" if len(close) else "")
        )
    print(f"  beyond its residual: {sum(error > residual for error, residual, _ in later)} of {len(later)}", flush=True)


def _row(found: Screened, stack: Tensor, power: float) -> tuple[float, float, float]:
    largest = float(torch.linalg.svdvals(stack.double()).max()) ** 2
    return 1 - found.spectral_norm**2 / largest, found.residual, 1 - power / largest


def _quantiles(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return "/".join(f"{value:.0e}" for value in np.quantile(values, (0.5, 0.95, 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["cost", "error"], choices=["cost", "error"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "cost" in options.what:
        print("| M = N | dtype | reading | screening | ratio |\n|---|---|---|---|---|")
        for size in SIZES:
            for dtype in DTYPES:
                read, screened, ratio = costs(size, dtype, options.repeats)
                name = str(dtype).removeprefix("torch.")
                print(f"| {size} | {name} | {read * 1e3:.0f} ms | {screened * 1e3:.2f} ms | {ratio:.0f} |", flush=True)
    if "error" in options.what:
        print("quantiles: median/95 %/all")
        errors(alexnet, 3000, 50)
        errors(language, 1500, 50)


if __name__ == "__main__":
    main()
