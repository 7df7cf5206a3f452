"""What watching costs: CPU time of training with esdmon over that without, interleaved in one process.

    python -m tests.benchmarks.overhead

Each pair trains the same steps of the same network twice, in an order that alternates, and gives one ratio; printed are
the median of the pairs and their range. The second number is the wall time of a reading in training steps, which is
what `every=` divides.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

import esdmon
from esdmon.demo import MiniAlexNet, batches, digits, train_step


def seconds(batch_size: int, steps: int, every: int | None) -> tuple[float, float, float]:
    """(CPU time of training, wall time of a step, wall time of a reading) of one run."""
    images, labels = digits()
    torch.manual_seed(0)
    model = MiniAlexNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.004, momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:
        sinks = [f"tensorboard:{folder}", f"jsonl:{Path(folder) / 'esdmon.jsonl'}"]
        monitor = None if every is None else esdmon.watch(model, optimizer, every=every, sinks=sinks)
        start, start_cpu = time.perf_counter(), time.process_time()
        for index in itertools.islice(batches(len(images), batch_size, seed=0), steps):
            train_step(model, optimizer, images[index], labels[index])
        cpu, step = time.process_time() - start_cpu, (time.perf_counter() - start) / steps
        if monitor is None:
            return cpu, step, 0.0
        monitor.close()
        return cpu, step, monitor.report.seconds if monitor.report else 0.0


def main() -> None:
    """Print a line for each batch size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=200)
    options = parser.parse_args()
    print(f"with/without, median of {options.pairs} pairs [range], every={options.every}, torch {torch.__version__}")
    for batch_size in (8, 32, 128):
        seconds(batch_size, 20, 10)  # warm-up
        ratios, in_steps = [], []
        for pair in range(options.pairs):
            order = (None, options.every) if pair % 2 else (options.every, None)
            runs = {every: seconds(batch_size, options.steps, every) for every in order}
            ratios.append(runs[options.every][0] / runs[None][0])
            in_steps.append(runs[options.every][2] / runs[None][1])
        print(
            f"MiniAlexNet, batch {batch_size:3d}: {statistics.median(ratios):.3f} "
            f"[{min(ratios):.3f}, {max(ratios):.3f}]; a reading costs {statistics.median(in_steps):.1f} steps",
            flush=True,
        )


if __name__ == "__main__":
    main()
