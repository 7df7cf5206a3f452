"""Measure the work of ranks between scheduled steps: `python -m tests.benchmarks.sharded_polls`.

A poll of the store of another process, and samples of single steps, of whole weights and of fragments.
"""

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.fsdp import fully_shard

from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.weights import StepSampler, discover

POLLS, LAYERS, WIDTH = 5000, 100, 256


def seconds(function: Callable[[], object], count: int) -> list[float]:
    """The seconds of each of so many calls, in order of size."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return sorted(found)


def poll(port: int) -> None:
    store: Any = PrefixStore("esdmon/0", TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20)))
    ranks = Coordinator(store, 1, 2)
    found = seconds(lambda: ranks.extra_plan(20), POLLS)
    print(f"a poll: median {1e6 * median(found):.0f} µs, 99 of 100 within {1e6 * found[POLLS * 99 // 100]:.0f} µs")


def sample(*, sharded: bool) -> None:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    for layer in (*model, model) if sharded else ():
        fully_shard(layer)
    sampler = StepSampler()
    sampler.watch(discover(model).matrices)

    def end() -> None:
        sampler.end()
        sampler.take()

    times = [(seconds(sampler.begin, 1), seconds(end, 1)) for _ in range(50)]
    before, after = (median(first for (first,) in each) / LAYERS for each in zip(*times, strict=True))
    kind = "a fragment" if sharded else "a whole weight"
    print(f"a sample of {kind}: {1e6 * before:.1f} µs before a step, {1e6 * after:.1f} µs after it")


def main() -> None:
    """Print one line for each."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)
    other = get_context("spawn").Process(target=poll, args=(store.port,))
    other.start()
    other.join()
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        sample(sharded=False)
        sample(sharded=True)
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
