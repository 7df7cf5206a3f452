"""Measure cost and accuracy of readings if a switch of torch lets a CPU round float32 products.

    python -m tests.benchmarks.precision_switches

Square weights that look trained, in one thread. For each setting ‖G − WᵀW‖/‖WᵀW‖ of torch's own product and of that of
a reading, in blocks of rows; the largest |Δλ|/λmax of the reading's eigenvalues; and the CPU time of product and
eigenvalues over that of both in float64, the median of ratios that were taken in turn. What torch's own product of
float32 loses under "medium" says whether this CPU has the instructions that round.
"""

import argparse
import statistics

import numpy as np
import torch
from torch import Tensor

from esdmon.weights import solve_torch
from esdmon.weights.device.solvers import gram_of
from tests.benchmarks.models import cpu_seconds, square

SIZES = (256, 1024, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETTINGS = ("highest", "high", "medium")


def relative(gram: Tensor, exact: Tensor) -> float:
    """Return the error of a product, relative in the Frobenius norm."""
    return float((gram.double() - exact).norm() / exact.norm())


def show(size: int, dtype: torch.dtype, repeats: int) -> None:
    """Print a line for each setting."""
    torch.set_float32_matmul_precision("highest")
    stack = square(size, torch.Generator().manual_seed(0)).to(dtype).get_parameter("weight").detach()[None]
    exact, expected = gram_of(stack, torch.float64), solve_torch(stack, torch.float64)
    for setting in SETTINGS:
        torch.set_float32_matmul_precision(setting)
        wide = stack.float()
        plain, gram, found = wide.mT @ wide, gram_of(stack, torch.float32), solve_torch(stack, torch.float32)
        off = np.abs(found - expected).max() / expected.max()
        ratios = []
        for _ in range(repeats):
            double = cpu_seconds(lambda: solve_torch(stack, torch.float64))
            ratios.append(cpu_seconds(lambda: solve_torch(stack, torch.float32)) / double)
        name, used = (str(each).removeprefix("torch.") for each in (dtype, gram.dtype))
        print(
            f"{size:5d} {name:9s} {setting:8s} product of torch {relative(plain, exact):.1e}, of a reading"
            f" {relative(gram, exact):.1e} in {used}; λ {off:.1e}; time {statistics.median(ratios):.2f} of float64's"
            f" {double:.3f} s",
            flush=True,
        )
    torch.set_float32_matmul_precision("highest")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.sizes:
        for dtype in DTYPES:
            show(size, dtype, options.repeats)


if __name__ == "__main__":
    main()
