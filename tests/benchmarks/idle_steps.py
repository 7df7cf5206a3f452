"""Measure the cost of a monitor at steps without a due reading, in training loops of small networks.

    python -m tests.benchmarks.idle_steps

Two copies of a network train in turn, 20 steps at a time, in an order that is drawn each time; one of them is watched,
and no step of it is due. Halfway through the other one is, so that what the place of a copy in memory costs cancels.
While the other one trains, the hook that torch calls for each optimizer of the process is taken away. Printed are
medians of CPU time in one thread: of a step without a monitor, and of what a monitor adds to it.
"""

import argparse
import random
import statistics
import time

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks as global_hooks

import esdmon

BLOCK = 20  # steps of one copy before those of the other
NEVER = 10**9
Copy = tuple[nn.Module, torch.optim.Optimizer]


def make(width: int) -> Copy:
    """Return a network of three layers, and its optimizer."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    model = nn.Sequential(*layers)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(copy: Copy, inputs: Tensor, targets: Tensor) -> float:
    """Return the CPU microseconds of a step."""
    model, optimizer = copy
    start = time.thread_time()
    for _ in range(BLOCK):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return 1e6 * (time.thread_time() - start) / BLOCK


def measure(width: int, batch: int, blocks: int) -> tuple[float, float]:
    """Return the medians of a step of the copy without a monitor, and of the difference to the watched one."""
    copies = [make(width), make(width)]
    inputs, targets = torch.randn(batch, 64), torch.randint(10, (batch,))
    plain, added = [], []
    for watched in (0, 1):
        with esdmon.watch(*copies[watched], every=NEVER, sinks=[], mode="sync"):
            for copy in copies:
                train(copy, inputs, targets)
            differences = []
            hooks = dict(global_hooks)
            for _ in range(blocks // 2):
                taken = {}
                for k in random.sample((0, 1), 2):
                    global_hooks.clear()
                    global_hooks.update(hooks if k == watched else {})
                    taken[k] = train(copies[k], inputs, targets)
                plain.append(taken[1 - watched])
                differences.append(taken[watched] - taken[1 - watched])
            added.append(statistics.median(differences))
    return statistics.median(plain), statistics.mean(added)


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for width, batch in ((64, 32), (256, 64), (512, 128)):
        step, added = measure(width, batch, options.blocks)
        print(f"width {width}, batch {batch}: {step:.0f} µs a step, a monitor adds {added:.1f} µs, {added / step:.2%}")


if __name__ == "__main__":
    main()
