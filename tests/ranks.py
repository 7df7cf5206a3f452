"""Start the ranks of a distributed job as processes that have torch and esdmon imported already."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "esdmon.sinks",
    "esdmon.watching",
    "pytest",
]


def start(function: Callable[..., None], *args: Any, ranks: int) -> None:
    """Call `function(rank, *args)` in a process for each rank, and wait for all.

    Each is forked off a server that has done nothing but import: the import takes longer than most jobs.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(function, args=args, nprocs=ranks, start_method="forkserver")  # type: ignore[no-untyped-call]  # torch leaves it untyped
