"""Measure the cost of a reading besides the product WᵀW and its eigenvalue problem, by shape.

    python -m tests.benchmarks.reading

Weights that look trained, read with all default measures in one thread: as `analyze()` reads them, each time as if it
were the first, and as `watch()` does where it reads on the spot, after each weight has moved by a thousandth. Printed
are medians of process CPU times, which others on the machine disturb less than wall times: of the product and the
eigenvalue problem, of everything besides, and of the ratio of the two.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.spectrum.arrays import Floats
from esdmon.weights import Drift, Solver, solve_lapack, solve_torch
from tests.benchmarks.models import train

SHAPES = ((64, 64, 3, 3), (256, 256, 3, 3), (384, 384), (1536, 384), (512, 512), (768, 768), (3072, 768), (1024, 1024))
WEIGHTS = 6  # of each shape: the laws of noise of one are not those of the next
MOVED = 1e-3  # of the standard deviation of a weight, between two readings of a watched one


class Timed:
    """A solver that counts its CPU seconds."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self.seconds = 0.0

    def __call__(self, stack: Tensor, dtype: torch.dtype) -> Floats:
        """Return the eigenvalues."""
        start = time.process_time()
        eigenvalues = self._solver(stack, dtype)
        self.seconds += time.process_time() - start
        return eigenvalues


def model_of(shape: tuple[int, ...]) -> nn.ModuleDict:
    """Return weights of one shape that look trained."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleDict()
    for number in range(WEIGHTS):
        rows, columns, *kernel = shape
        layer = nn.Conv2d(columns, rows, kernel[0], bias=False) if kernel else nn.Linear(columns, rows, bias=False)
        with torch.no_grad():
            layer.weight.normal_(std=(2 / columns) ** 0.5, generator=generator)
            train(layer.weight, generator)
        layers[str(number)] = layer
    return layers


def costs(shape: tuple[int, ...], solver: Solver, repeats: int, *, is_watched: bool) -> tuple[float, float, float]:
    """Return the medians of solver and rest, in milliseconds, and of rest over solver."""
    model, plugins, timed = model_of(shape), Plugins(), Timed(solver)
    measures = choose_measures("default", plugins.measures)

    def make() -> Reader:
        return Reader(model, plugins, ReadingOptions(measures, solver=timed), drift=Drift() if is_watched else None)

    watching = make()

    def read(name: str, step: int) -> tuple[float, float]:
        reader = watching if is_watched else make()  # which knows no law of noise from a reading before
        if is_watched:
            move(model[name])
        moved, before, start = reader.mark(name), timed.seconds, time.process_time()
        assert reader.begin(name, step, moved=moved)().status == "ok"
        solved = timed.seconds - before
        return 1e3 * solved, 1e3 * (time.process_time() - start - solved)

    taken = [[read(name, step) for name in model] for step in range(repeats + 1)][1:]
    pairs = [pair for step in taken for pair in step]
    parts: list[Callable[[float, float], float]] = [lambda solved, _: solved, lambda _, rest: rest, lambda a, b: b / a]
    solved, rest, ratio = (statistics.median(part(*pair) for pair in pairs) for part in parts)
    return solved, rest, ratio


@torch.no_grad()
def move(layer: nn.Module, by: float = MOVED) -> None:
    """Add noise to a weight, as an optimizer's steps do: `by` of its standard deviation."""
    weight = layer.get_parameter("weight")
    weight.add_(torch.randn(weight.shape), alpha=by * float(weight.std()))


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"medians of {options.repeats} × {WEIGHTS} readings, CPU milliseconds")
    print(f"{'':<16} {'analyze: solver':>15} {'rest':>6} {'ratio':>6}   {'watch: solver':>13} {'rest':>6} {'ratio':>6}")
    for shape in SHAPES:
        once = costs(shape, solve_lapack, options.repeats, is_watched=False)
        watched = costs(shape, solve_torch, options.repeats, is_watched=True)
        print(
            f"{' × '.join(map(str, shape)):<16} {once[0]:15.2f} {once[1]:6.2f} {once[2]:6.2f}"
            f"   {watched[0]:13.2f} {watched[1]:6.2f} {watched[2]:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
