"""What each rank of a job does in the tests of distributed training; `run` starts a job by its name in `JOBS`."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import esdmon
from esdmon import watching
from esdmon.limits import Limits
from esdmon.runtime.reading.reader import Reader
from esdmon.sinks import MemorySink
from tests.ranks import results_in, start

STEPS = 12


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 64))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = STEPS) -> list[Tensor]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(4, 64)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def rank_of_a_job(rank: int, job: str, folder: str, size: int) -> None:
    """One rank: its own log, and what the job's function returns as its result."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    result = JOBS[job](rank, Path(folder))
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()  # a rank whose peer is gone aborts
    distributed.destroy_process_group()


def run(job: str, folder: Path, size: int = 2) -> list[Any]:
    start(rank_of_a_job, job, str(folder), size, ranks=size)
    return results_in(folder, size)


def log(folder: Path, rank: int) -> str:
    return (folder / f"log-{rank}").read_text()


def shared(rank: int, folder: Path, **options: Any) -> dict[str, Any]:
    """DDP, watched by the same line everywhere; which matrices were read here, and the losses."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sinks = f"jsonl:{folder}/rank-{rank}.jsonl"
    monitor = esdmon.watch(model, optimizer, every=3, budget=None, sinks=sinks, **options)
    with counted_readings() as read, monitor:
        losses = train(model, optimizer, rank)
    return {"read": read, "losses": [float(loss) for loss in losses], "errors": len(monitor.errors)}


@contextmanager
def counted_readings() -> Iterator[list[tuple[int, str]]]:
    """Which matrices this rank reads meanwhile, and at which steps."""
    begin = Reader.begin
    read: list[tuple[int, str]] = []

    def counted(reader: Reader, name: str, step: int, **options: Any) -> Any:
        read.append((step, name))
        return begin(reader, name, step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "begin", counted)
        yield read


def unwatched(rank: int, _folder: Path) -> list[float]:
    model = DistributedDataParallel(network(rank))
    return [float(loss) for loss in train(model, torch.optim.SGD(model.parameters(), lr=0.01), rank)]


def only_on_rank_0(rank: int, _folder: Path) -> list[int]:
    """As many scripts do what concerns output."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    monitor = esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink]) if rank == 0 else None
    train(model, optimizer, rank)
    if monitor is not None:
        monitor.close()
    return [len(report.new) for report in sink.reports]


def not_on_rank_0(rank: int, _folder: Path) -> list[tuple[int, str]]:
    """The others find no word, and wait for none; what they read."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with counted_readings() as read:
        monitor = esdmon.watch(model, optimizer, every=1, sinks=None) if rank else None
        train(model, optimizer, rank)
        if monitor is not None:
            monitor.close()
            assert monitor.errors == ()
    return read


def one_fails(rank: int, _folder: Path) -> dict[str, Any]:
    """A rank whose readings raise: rank 0 has its word for it, and the others' numbers."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()

    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("on this rank")

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr("esdmon.runtime.reading.computing.read_spectrum", broken)
        with esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink]):
            train(model, optimizer, rank)
    return {str(report.step): {layer.name: layer.status for layer in report.new} for report in sink.reports}


def one_dies(rank: int, _folder: Path) -> list[list[str]]:
    """A rank that stops answering: its readings are lost and logged, and rank 0 reads its share after three times."""
    vars(watching)["Limits"] = partial(Limits, rank_seconds=0.05)
    model = network(0)
    sink = MemorySink()
    monitor = esdmon.watch(model, every=1, budget=None, sinks=[sink])
    for step in range(STEPS):
        if rank == 0 or step < 3:
            monitor.step()
        time.sleep(0.1)
        distributed.barrier()
    monitor.close(timeout=0.2)
    return [[layer.name for layer in report.new] for report in sink.reports]


def read_in_turn(model: nn.Module) -> list[list[str]]:
    """Return what each report of four steps has, where no rank is ahead of another."""
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink]) as monitor:
        for _ in range(4):
            monitor.step()
            distributed.barrier()
    return [[layer.name for layer in report.new] for report in sink.reports]


def different(rank: int, _folder: Path) -> list[list[str]]:
    """Ranks that train models of their own."""
    return read_in_turn(network(rank))


def resumed(rank: int, _folder: Path) -> list[int]:
    """Rank 0's state, loaded on all ranks."""
    steps: list[int] = []
    state: list[Any] = [None]
    for _ in range(2):
        model = DistributedDataParallel(network(0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sink = MemorySink()
        with esdmon.watch(model, optimizer, every=4, budget=None, sinks=[sink]) as monitor:
            if state[0] is not None:
                monitor.load_state_dict(state[0])
            train(model, optimizer, rank, steps=6)
            state = [monitor.state_dict() if rank == 0 else None]
        distributed.broadcast_object_list(state)
        steps += [report.step for report in sink.reports]
    return steps


def checkpointed(rank: int, _folder: Path) -> list[list[str]]:
    """Rank 0 saves, as everyone does, while the others wait in the next step."""
    model = DistributedDataParallel(network(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=2, budget=None, mode="thread", sinks=[sink]) as monitor:
        for step in range(STEPS):
            train(model, optimizer, rank + 10 * step, steps=1)
            if rank == 0:
                monitor.state_dict()
            time.sleep(0.05)  # else more due steps are under way than may be
    return [[layer.name for layer in report.new] for report in sink.reports]


def rolled_back(rank: int, _folder: Path) -> list[list[int]]:
    """A job that goes back to a checkpoint without a new start: messages of those steps do not apply."""
    model = DistributedDataParallel(network(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink]) as monitor:
        train(model, optimizer, rank, steps=4)
        state = [monitor.state_dict()]
        distributed.broadcast_object_list(state)
        train(model, optimizer, rank, steps=4)
        monitor.load_state_dict(state[0])
        train(model, optimizer, rank, steps=4)
    assert monitor.errors == ()
    return [[report.step, len(report.new)] for report in sink.reports]


def stage(*names: str, **options: Any) -> list[list[str]]:
    """Two stages of a pipeline, of which each has the layers that its rank names."""
    model = nn.ModuleDict({name: nn.Linear(64, 48) for name in names})
    sink = MemorySink()
    with esdmon.watch(model, every=3, budget=None, sinks=[sink], **options) as monitor:
        for _ in range(2 * 3):
            distributed.barrier()
            monitor.step()
    assert monitor.errors == ()
    return [[layer.name for layer in report.new] for report in sink.reports]


def patterns_of_stages(rank: int, _folder: Path) -> list[list[list[str]]]:
    """Patterns that one stage has and the other has not, and a stage without any matrix."""
    own = ("c", "d") if rank else ("a", "b")
    return [
        stage(*own, layers=["a", "d"]),
        stage(*own, layers=["d"]),
        stage(*own, exclude=["a"]),
        stage(*(own if rank else ())),
    ]


def late_at_the_end(rank: int, _folder: Path) -> dict[str, list[str]]:
    """Rank 1 has closed its monitor when rank 0 is in its last step, at which half of the matrices are due."""
    model = nn.ModuleDict({name: nn.Linear(64, 48) for name in ("ab", "cd")[rank]})
    sink = MemorySink()
    with esdmon.watch(model, every=3, budget=None, sinks=[sink]) as monitor:
        for step in range(1, 7):
            distributed.barrier()
            time.sleep(0.5 * (rank == 0 and step == 6))
            monitor.step()
    return {str(report.step): [f"{layer.name} {layer.status}" for layer in report.new] for report in sink.reports}


def mistyped(rank: int, _folder: Path) -> list[str]:
    """A pattern that no rank has is an error on each, as are patterns that leave nothing anywhere."""
    messages = []
    for options in ({"layers": ["a", "oops*"]}, {"exclude": ["*"]}):
        try:
            stage("ab"[rank], **options)
        except esdmon.errors.InputError as error:
            messages.append(str(error))
        distributed.barrier()
    return messages


def only_one_watches(rank: int, _folder: Path) -> list[str]:
    """A pattern that rank 0 has not, and the other does not watch: it goes on, and logs it."""
    vars(watching)["Limits"] = partial(Limits, rank_seconds=0.05)
    if rank == 0:
        with esdmon.watch(network(0), every=1, budget=None, sinks=None, layers=["0", "oops"]) as monitor:
            monitor.step()
    distributed.barrier()
    return []


def one_expert_differs(rank: int, _folder: Path) -> list[list[str]]:
    """Most weights are the same on all ranks; one is each rank's own."""
    model = network(0)
    with torch.no_grad():
        model.get_parameter("4.weight").add_(rank)
    return read_in_turn(model)


def sharded_optimizer(rank: int, _folder: Path) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: the weights are the same on all ranks after its outer step, and not after its inner."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(network(0))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink], strict=True) as monitor:
        train(model, optimizer, rank)
    norms = {report.step: report["4"].measures["frobenius_norm"] for report in sink.reports}
    return {"steps": monitor.steps, "norms": norms, "now": float(model.module[4].weight.norm())}


JOBS: dict[str, Callable[[int, Path], Any]] = {
    "shared": shared,
    "shared-thread": lambda rank, folder: shared(rank, folder, mode="thread"),
    "unwatched": unwatched,
    "only-on-rank-0": only_on_rank_0,
    "not-on-rank-0": not_on_rank_0,
    "one-fails": one_fails,
    "one-dies": one_dies,
    "different": different,
    "resumed": resumed,
    "checkpointed": checkpointed,
    "rolled-back": rolled_back,
    "one-expert-differs": one_expert_differs,
    "sharded-optimizer": sharded_optimizer,
    "patterns-of-stages": patterns_of_stages,
    "mistyped": mistyped,
    "late-at-the-end": late_at_the_end,
    "only-one-watches": only_one_watches,
}
