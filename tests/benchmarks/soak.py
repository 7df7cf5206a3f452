"""Run a small model for thousands of readings, and measure the memory that the monitor holds.

    python -m tests.benchmarks.soak [--steps 20000] [--mode thread]

Prints the memory of the process (resident, MB) after each tenth of the run, and the threads and open files before the
run and after the monitor is closed.
"""

import argparse
import gc
import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import esdmon

EVERY = 10


@dataclass(frozen=True)
class Soaked:
    """What was held."""

    memory: list[float]
    """MB after each tenth."""
    readings: int
    threads: tuple[int, int]
    """Before and after."""
    files: tuple[int, int]


def soak(steps: int, mode: str, folder: Path) -> Soaked:
    """Train, read every ten steps, write to TensorBoard and JSONL."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sinks = [f"tensorboard:{folder}", f"jsonl:{folder / 'esdmon.jsonl'}"]
    before = threading.active_count(), _files()
    memory = []
    with esdmon.watch(model, optimizer, every=EVERY, budget=None, mode=mode, sinks=sinks) as monitor:
        for step in range(1, steps + 1):
            loss = (model(torch.randn(16, 64)) - torch.randn(16, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0:
                monitor.flush()  # on a busy machine a queue that is full would skip a reading
            if step % (steps // 10) == 0:
                gc.collect()
                memory.append(_resident())
    for thread in threading.enumerate():
        if thread.name.startswith("esdmon"):
            thread.join(5)
    readings = (folder / "esdmon.jsonl").read_text().count('"kind":"summary"')
    return Soaked(memory, readings, (before[0], threading.active_count()), (before[1], _files()))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _files() -> int:
    """Without the fonts, which matplotlib keeps open once it has drawn."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one by which the folder is read
            targets.append(link.readlink().suffix)
    return len([suffix for suffix in targets if suffix not in (".ttf", ".otf")])


def main() -> None:
    """Print what was held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--mode", choices=["sync", "thread"], default="sync")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soaked = soak(options.steps, options.mode, Path(folder))
    print(f"{options.steps} steps, {soaked.readings} readings, mode {options.mode}")
    print("MB after each tenth:", " ".join(f"{mb:.1f}" for mb in soaked.memory))
    print(f"last over second: {soaked.memory[-1] / soaked.memory[1] - 1:+.2%}")
    print(f"threads {soaked.threads[0]} -> {soaked.threads[1]}, open files {soaked.files[0]} -> {soaked.files[1]}")


if __name__ == "__main__":
    main()
