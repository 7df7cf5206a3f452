"""Run a long training of two ranks with sharded weights: threads, open files, copies and memory must not grow.

`python -m tests.benchmarks.sharded_soak` runs 20 000 steps with 2000 due steps, and prints what there is after a fifth
of them and at the end, on each rank.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import esdmon
from esdmon.runtime.ranks.fragment_exchange import FragmentExchange
from esdmon.sinks import MemorySink
from tests.ranks import fork

WIDTH, LAYERS, EVERY = 64, 3, 10


def resident() -> float:
    """Return the memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main(steps: int) -> None:
    """Train on this rank."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    boxes: list[FragmentExchange] = []
    opened: Any = FragmentExchange.open

    def noted(box: FragmentExchange) -> str:
        boxes.append(box)
        address: str = opened(box)
        return address

    kind: Any = FragmentExchange
    kind.open = noted
    sink = MemorySink()
    monitor = esdmon.watch(model, optimizer, every=EVERY, budget=None, sinks=[sink])
    read = failed = 0
    for step in range(1, steps + 1):
        model(torch.randn(2, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        read += sum(layer.status == "ok" for report in sink.reports for layer in report.new)
        failed += sum(layer.status != "ok" for report in sink.reports for layer in report.new)
        sink.reports.clear()
        if step in (steps // 5, steps):
            monitor.flush(20)
            distributed.barrier()
            files = len(list(Path("/proc/self/fd").iterdir()))
            print(
                f"rank {distributed.get_rank()}, step {step}: {threading.active_count()} threads, {files} files, "
                f"{boxes[0].n_kept} copies, most kept {boxes[0].peak_bytes} B, {resident():.0f} MB, "
                f"{sys.getallocatedblocks() / 1000:.0f} k blocks of Python's memory, "
                f"{read} readings, {failed} failed, {monitor.dropped} dropped, {len(monitor.errors)} errors",
                flush=True,
            )
    monitor.close()
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    fork(main, int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
