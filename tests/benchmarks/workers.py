"""Compare the time of reading a model by worker processes, by one thread, and by the threads of OpenBLAS.

    python -m tests.benchmarks.workers [--width 3072] [--count 8] [--last 0] [--rounds 5] [--busy]

Medians of wall times, taken in turn. With `--busy` another process uses one core meanwhile. With `--last` a matrix of
that width is the model's last, and printed is also what workers take that begin with the costliest, over what those
take that begin in the model's order: the median of ratios of wall times, and the ratio that follows from the CPU time
of each matrix, which other programs hardly change.
"""

import argparse
import heapq
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from unittest import mock

import torch
from torch import nn

import esdmon
from esdmon.runtime.workers.cpus import cores


def seconds(model: nn.Module, workers: int) -> float:
    """Wall time of a reading."""
    start = time.perf_counter()
    esdmon.analyze(model, workers=workers)
    return time.perf_counter() - start


def with_blas_threads(model: nn.Module) -> float:
    """Wall time of a reading in this process, with as many threads of OpenBLAS as it has by default."""
    with mock.patch("esdmon.runtime.reading.pool.in_one_thread", nullcontext):
        return seconds(model, 1)


def cpu_seconds(layer: nn.Module) -> float:
    """CPU time of a reading in this process, in one thread."""
    start = time.process_time()
    esdmon.analyze(layer, workers=1)
    return time.process_time() - start


def span(taken: Iterable[float]) -> float:
    """When the last of several workers has finished, if each begins the next reading as soon as it has finished one."""
    free = [0.0] * cores()
    for each in taken:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def in_order(model: nn.Module) -> float:
    """Wall time of a reading by workers that begin in the model's order."""
    with mock.patch("esdmon.runtime.reading.pool._costliest_first", lambda _reader, names: names):
        return seconds(model, cores())


def main() -> None:
    """Print a line, with `--last` two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--last", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    widths = [options.width] * options.count + ([options.last] if options.last else [])
    layers = [nn.Linear(width, width, bias=False) for width in widths]
    for layer in layers:
        nn.init.normal_(layer.weight)
    model = nn.Sequential(*layers)
    esdmon.analyze(layers[0], workers=1)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
    try:
        taken = [(seconds(model, 1), seconds(model, cores()), with_blas_threads(model)) for _ in range(options.rounds)]
        ratios = [seconds(model, cores()) / in_order(model) for _ in range(options.rounds if options.last else 0)]
    finally:
        if other is not None:
            other.kill()
    alone, beside, threads = map(statistics.median, zip(*taken, strict=True))
    busy = ", one of them used by another process" if options.busy else ""
    print(
        f"{cores()} cores{busy}; {options.count} matrices of {options.width}²: {cores()} workers take "
        f"{beside / alone:.2f} of one thread's time, threads of OpenBLAS {threads / alone:.2f}"
    )
    if ratios:
        alone_each = [cpu_seconds(layer) for layer in layers]
        follows = span(sorted(alone_each, reverse=True)) / span(alone_each)
        wall = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"with one of {options.last}² behind them, over the model's order: wall time {wall}, by CPU {follows:.2f}"
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
