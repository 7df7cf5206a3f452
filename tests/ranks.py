"""Start the ranks of a distributed job as processes that have torch and esdmon imported already."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
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


def fork(function: Callable[..., None], *args: Any, ranks: int = 2) -> None:
    """Call `function(*args)` in a fork of this process for each rank, in the environment that torchrun gives.

    For scripts that have imported a host: a host takes many seconds to import, and torchrun imports it in each rank.
    """
    start_processes(_as_rank, (ranks, _free_port(), function, args), nprocs=ranks, start_method="fork")  # type: ignore[no-untyped-call]  # torch leaves it untyped


def torchrun(function: Callable[..., None], *args: Any, ranks: int = 2) -> None:
    """Call `function(*args)` as `start` does, in the environment that torchrun gives."""
    start(_as_rank, ranks, _free_port(), function, args, ranks=ranks)


def results_of(function: Callable[..., None], folder: Path, ranks: int) -> list[Any]:
    """Call `function(rank, folder)` in each rank, and return what each has written."""
    start(function, str(folder), ranks=ranks)
    return results_in(folder, ranks)


def results_in(folder: Path, ranks: int) -> list[Any]:
    """What each rank has written as `result-<rank>.json`."""
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(ranks)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _as_rank(rank: int, ranks: int, port: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    sizes = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in ({"RANK": rank, "LOCAL_RANK": rank} | sizes).items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    function(*args)
