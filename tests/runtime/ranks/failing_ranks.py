"""Ranks that die, raise, are late or silent, or do not watch: what the others feel of it, in processes of their own.

The training is a few local steps and a pause: whatever waits in it waits for the monitor.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from esdmon.limits import Limits
from esdmon.options import WatchOptions
from esdmon.runtime.monitor import Monitor
from esdmon.runtime.ranks.fragment_exchange import FragmentExchange
from esdmon.runtime.reading.local_parts import LocalParts
from esdmon.sinks import MemorySink
from esdmon.watching import attach

AFTER = 20  # steps after it happens
LIMITS = Limits(rank_seconds=1.0, fragment_seconds=0.5, close_seconds=8.0, first_pause=2)


def network(rank: int) -> nn.Module:
    """Four sharded matrices, and one that only rank 0 has."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = nn.Module()
    for number in range(4):
        weight = distribute_tensor(torch.randn(41, 30), mesh, [Shard(0)])
        model.register_parameter(f"w{number}", nn.Parameter(weight))
    if rank == 0:
        model.register_parameter("own", nn.Parameter(torch.randn(30, 40)))
    return model


def kill(_monitor: Monitor | None) -> None:
    time.sleep(0.3)  # the other rank has left the barrier
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(_monitor: Monitor | None) -> None:
    time.sleep(1.0)


def close(monitor: Monitor | None) -> None:
    assert monitor is not None
    monitor.close()


def go_silent(_monitor: Monitor | None) -> None:
    vars(FragmentExchange)["_answer"]
    pytest.MonkeyPatch().setattr(FragmentExchange, "_answer", lambda *_: time.sleep(60))


def raise_on_one(_monitor: Monitor | None) -> None:
    copy = LocalParts.copy

    def failing(parts: LocalParts, parameter: str) -> Callable[[], memoryview]:
        if parameter == "w1":
            raise RuntimeError("this one cannot be copied")
        return copy(parts, parameter)

    pytest.MonkeyPatch().setattr(LocalParts, "copy", failing)


BETWEEN = "rank 1 is killed before it is read between"  # at an extra reading of what jumps, not a scheduled one
EVENTS: dict[str, tuple[int, Callable[[Monitor | None], None]]] = {
    "rank 1 is killed": (1, kill),
    "rank 0 is killed": (0, kill),
    "rank 1 raises on one weight": (1, raise_on_one),
    "rank 1 sleeps": (1, sleep),
    "rank 1 is silent": (1, go_silent),
    "rank 1 closes first": (1, close),
    "rank 0 closes first": (0, close),
    BETWEEN: (1, kill),
}
TOGETHER = ("rank 1 raises on one weight", "rank 1 is silent")  # the training goes on as before
ABSENT = {"rank 1 does not watch": 1, "rank 0 does not watch": 0}
CASES = (*EVENTS, *ABSENT)


def run(rank: int, case: str, folder: str, port: int) -> None:
    store = TCPStore("127.0.0.1", port, None, rank == 0, timedelta(seconds=20))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = network(rank)
    sink = MemorySink()
    every = 10 if case == BETWEEN else 2
    settings: dict[str, Any] = {"every": every, "budget": None, "sinks": [sink], "mode": "thread"}
    options = WatchOptions.from_keywords(settings, besides=())
    monitor = None if ABSENT.get(case) == rank else attach(model, None, options, limits=LIMITS)
    distributed.barrier()
    who, happens = EVENTS.get(case, (None, kill))
    longest, event, step = 0.0, 0, 0
    while not event or step < event + AFTER:
        step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                jumps = case == BETWEEN and event and step == event + 1
                (parameter.to_local() if hasattr(parameter, "to_local") else parameter).mul_(2.0 if jumps else 1.001)
        if not event:  # as a training does, the ranks go on together
            if (
                rank == 0
                and step > (34 if case == BETWEEN else 6)
                and (case in ABSENT or _are_all_read(sink) or step > 100)
            ):
                store.set("event", str(step))
            distributed.barrier()
            event = int(store.get("event")) if store.check(["event"]) else 0
            if event and who == rank:
                happens(monitor)
        elif case in TOGETHER:
            distributed.barrier()
        before = time.monotonic()
        if monitor is not None:
            monitor.step()
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.08)
    before = time.monotonic()
    if monitor is not None:
        monitor.close()
    Path(f"{folder}/result-{rank}.json").write_text(
        json.dumps(
            {
                "event": event,
                "longest": longest,
                "close": time.monotonic() - before,
                "read": [[layer.step, layer.name, layer.status, layer.reason] for layer in _new(sink)],
                "errors": {} if monitor is None else {fault.who: fault.message for fault in monitor.errors},
            }
        )
    )
    time.sleep(0.2 if rank else 1.0)  # rank 0 has the store, which the others use to the end
    os._exit(0)


def _are_all_read(sink: MemorySink) -> bool:
    return {layer.name for layer in _new(sink) if layer.status == "ok"} >= {"own", "w0", "w1", "w2", "w3"}


def _new(sink: MemorySink) -> list[Any]:
    return [layer for report in sink.reports for layer in report.new]
