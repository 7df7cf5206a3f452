"""Measure the cost of a concurrent reading, by a thread or a worker process, to a loop of many small operations.

`python -m tests.benchmarks.beside`: steps of 2000 small operations, in blocks: beside no reading, beside readings in a
thread, beside readings in a process, in turn. Times are of the operations alone, without what the hook copies.
`--exit`: seconds until a process has ended that closes a monitor while a matrix of 4096 × 4096 is read.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import esdmon
from esdmon.sinks import MemorySink

_OPERATIONS = 2000
_BLOCK = 100  # steps
_LAYERS = 2
_LONG = 120.0  # seconds
_EXIT = """
import sys, time, torch, esdmon
model = torch.nn.Linear(4096, 4096)
monitor = esdmon.watch(model, every=1, mode=sys.argv[1], sinks=None, alerts=None, budget=None)
monitor.step()
time.sleep(float(sys.argv[2]))
print(monitor.report is None, flush=True)
start = time.time()
monitor.close(timeout=0)
print(time.time() - start, time.time(), flush=True)
"""


def small_operations() -> float:
    """Return the seconds of a step."""
    x = torch.ones(8)
    start = time.perf_counter()
    for _ in range(_OPERATIONS):
        x = x * 0.999
    return time.perf_counter() - start


class Readings:
    """Readings of a model that are always under way."""

    def __init__(self, mode: str, size: int) -> None:
        model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(_LAYERS)))
        self._sink = MemorySink()
        self.monitor = esdmon.watch(model, every=1, mode=mode, sinks=[self._sink], alerts=None, budget=None, workers=0)
        for _ in range(4):
            self.monitor.step()
        self.monitor.flush(_LONG)  # a process starts with its first reading

    def block(self) -> tuple[list[float], int]:
        """Return the seconds of each step, and how many matrices were read meanwhile."""
        before, times = len(self._sink.reports), []
        for _ in range(_BLOCK):
            self.monitor.step()
            times.append(small_operations())
        read = _LAYERS * (len(self._sink.reports) - before)
        self.monitor.flush(_LONG)
        return times, read


def compare(rounds: int, size: int) -> None:
    """Print step times, relative to those of the same round beside no reading."""
    readings = {mode: Readings(mode, size) for mode in ("thread", "process")}
    blocks: dict[str, list[tuple[list[float], int]]] = {mode: [] for mode in readings}
    alone = []
    for _ in range(rounds):
        alone.append([small_operations() for _ in range(_BLOCK)])
        for mode, each in readings.items():
            blocks[mode].append(each.block())
    print(f"{size} × {size}: longest step beside no reading {1e3 * max(map(max, alone)):.0f} ms")
    for mode, found in blocks.items():
        pairs = list(zip(found, alone, strict=True))
        ratios = [statistics.mean(times) / statistics.mean(plain) for (times, _), plain in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        read = statistics.mean(read for _, read in found)
        lost = sum(sum(times) - sum(plain) for (times, _), plain in pairs) / max(1, sum(read for _, read in found))
        print(
            f"  {mode:8} × {middle:.2f} [{low:.2f}, {high:.2f}], longest step "
            f"{1e3 * max(max(times) for times, _ in found):.0f} ms, {read:.0f} matrices read in a block, "
            f"{1e3 * lost:.1f} ms lost for each"
        )
        readings[mode].monitor.close()


def exits(after: float) -> None:
    """Print how long the end of a process takes while a reading is under way."""
    for mode in ("thread", "process"):
        result = subprocess.run(
            [sys.executable, "-c", _EXIT, mode, str(after)], capture_output=True, text=True, check=True
        )
        ended = time.time()
        is_under_way, times = result.stdout.splitlines()[-2:]
        closing, since = map(float, times.split())
        print(
            f"{mode:8} under way: {is_under_way}; close() {closing:.2f} s, the end of the process {ended - since:.2f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--exit", type=float, help="seconds after the reading has begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.exit is None:
        for each in options.sizes:
            compare(options.rounds, each)
    else:
        exits(options.exit)
