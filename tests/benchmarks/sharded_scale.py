"""Count the monitor's messages in a job of 64 to 4096 ranks, by the real protocol over a counting store.

`python -m tests.benchmarks.sharded_scale` prints the table of docs/sharded.md. Rank 0's part runs as it does in a job;
the other ranks are their tables, which are computed as FSDP2 would cut a decoder, and as many polls of the store as
each would take. Times of the network are a model, with the constants below; those of rank 0 are measured here.
"""

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.ranks.holdings import Listed, Part, Table
from esdmon.runtime.ranks.sharing import Reads
from esdmon.schedule.budget import Budget
from esdmon.schedule.fragments import Fragment

ROUND_TRIP = 100e-6  # seconds of a poll of the store, for the rank that polls; on a cluster's Ethernet
SERVED = 10e-6  # seconds of the store's server for each: polls of all ranks at the same step queue up
BANDWIDTH = 1e9  # bytes a second between two hosts, 8 Gbit/s
LAYERS, WIDTH = 32, 4096  # a decoder of 7 billion parameters: seven matrices a layer
READ = 2  # matrices at a due step, as a budget of 1 % might allow
EVERY = 200  # steps between due ones


class CountingStore:
    """A store in memory that counts operations and bytes."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.operations = self.bytes = 0

    def _count(self, size: int = 0) -> None:
        self.operations += 1
        self.bytes += size

    def set(self, key: str, value: str | bytes) -> None:
        self.values[key] = value.encode() if isinstance(value, str) else value
        self._count(len(value))

    def get(self, key: str) -> bytes:
        self._count(len(self.values[key]))
        return self.values[key]

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        self._count()
        return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        self._count()
        return all(key in self.values for key in keys)

    def delete_key(self, key: str) -> bool:
        self._count()
        return self.values.pop(key, None) is not None

    def taken(self) -> tuple[int, int]:
        counts = self.operations, self.bytes
        self.operations = self.bytes = 0
        return counts


def matrices() -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"layers.{layer}.self_attn.{name}", (WIDTH, WIDTH)
        for name in ("gate_proj", "up_proj"):
            yield f"layers.{layer}.mlp.{name}", (11008, WIDTH)
        yield f"layers.{layer}.mlp.down_proj", (WIDTH, 11008)


def table(rank: int, ranks: int) -> Table:
    listed, parts = {}, {}
    for name, shape in matrices():
        listed[name] = Listed(1.0, (f"{name}.weight",), "", math.prod(shape))
        rows = math.ceil(shape[0] / ranks)
        start, stop = min(rank * rows, shape[0]), min((rank + 1) * rows, shape[0])
        fragment = Fragment((start, 0), (stop - start, shape[1])) if stop > start else None
        parts[f"{name}.weight"] = Part(shape, 2, fragment, f"{rank:012x}" if fragment else "", 0)
    return Table(rank, f"10.0.{rank // 256}.{rank % 256} 41234", listed, parts)


class OnlyTells(Assignments):  # type: ignore[misc]  # the part of rank 0 that holds no model
    """Rank 0 without a model of its own."""

    def __init__(self) -> None:
        self.parts: Any = None
        self.announcer: Any = SimpleNamespace(n_listed=7 * LAYERS)


def simulate(ranks: int) -> str:
    store = CountingStore()
    leader = Coordinator(store, 0, ranks)
    job = DistributedJob(leader, OnlyTells(), Faults(), Budget(0.01), limits=Limits(), escalates=True)
    others = [Coordinator(store, rank, ranks) for rank in range(1, ranks)]
    leader.announce(table(0, ranks))
    for rank, other in enumerate(others, 1):
        other.announce(table(rank, ranks))
    _, announced = store.taken()
    start = time.process_time()
    while not job.holdings.matrices:
        job.update_holdings()
        time.sleep(0.01)
    joined = time.process_time() - start
    store.taken()
    names = list(job.holdings.matrices)
    reads = {rank: Reads(1.0, math.inf) for rank in range(ranks)}
    job.announce(100, job.assign(dict.fromkeys(names[:READ], 1.0), reads))
    start = time.process_time()
    job.update_holdings()
    job.announce(200, job.assign(dict.fromkeys(names[READ : 2 * READ], 1.0), reads), gap=EVERY)
    leads = time.process_time() - start
    _, said = store.taken()
    for other in others:  # what each does in its hook
        plan = other.plan(200)
        assert plan is not None
        polls = plan.polls
    looked, heard = store.taken()
    sent = sum(job.holdings.bytes_of[f"{name}.weight"] for name in names[READ : 2 * READ])
    hook = ROUND_TRIP * 4 + SERVED * looked
    for other in others:  # and at each poll until the next due step
        assert other.extra_plan(200 + polls[0]) is None
    poll = ROUND_TRIP + SERVED * store.taken()[0]
    return (
        f"| {ranks} | {announced / 1e6:.1f} MB | {joined:.1f} s | {said / 1e3:.1f} kB | {1000 * leads:.0f} ms | "
        f"{looked / (ranks - 1):.0f}, {heard / (ranks - 1):.0f} B | {1000 * hook:.0f} ms | "
        f"{len(polls)}, {1000 * poll:.1f} ms | "
        f"{sent / 1e6:.0f} MB, {sent / BANDWIDTH:.2f} s |"
    )


def main() -> None:
    """Print one line for each size of the job."""
    print(
        "| ranks | all tables, once | CPU time to join them, once, in rank 0's thread | plan of a due step | CPU time "
        "of rank 0's hook | polls and bytes of another rank | hook of another rank, modelled | polls until the next "
        "due step, each modelled | fetched in the threads |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for ranks in (64, 256, 1024, 4096):
        print(simulate(ranks), flush=True)


if __name__ == "__main__":
    main()
