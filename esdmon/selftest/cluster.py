"""Check a job of several ranks: `torchrun … -m esdmon.selftest` on the machines that train, one table on rank 0.

Each check trains a small model that is sharded in one way, with a monitor and without. It compares the readings with
the whole weights, which it gathers by torch's own collectives, outside of the monitor's steps.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from esdmon.records import LayerReport, Report
from esdmon.runtime.ranks.own_address import own_address
from esdmon.selftest.harness import Result, explain, quiet
from esdmon.selftest.models import faults_of
from esdmon.sinks import MemorySink
from esdmon.watching import watch

_STEPS = 8
_WAIT = 0.5  # largest seconds of a step of the monitor
_LATE = 5.0  # seconds that a rank sleeps: longer than the others wait for its fragment
_NAME = 26


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a training, with or without a monitor."""

    losses: list[float]
    reports: tuple[Report, ...] = ()
    norms: tuple[dict[str, float], ...] = ()
    """Frobenius norms of the whole weights after each step."""
    collectives: int = 0
    longest: float = 0.0
    """Seconds of the longest step of the monitor, without the first, which loads libraries."""
    errors: tuple[str, ...] = ()


def check_all(device: torch.device) -> int:
    """Run all checks on all ranks, print the table on rank 0, and return the exit status: 1 if any has failed."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    failed = False
    _print(f"{'check':<{_NAME}} | result | detail")
    for name, check in _checks(distributed.get_world_size()):
        try:
            with quiet():
                result, detail = check(device)
        except Exception as error:  # noqa: BLE001 -- any error is a failed check
            result, detail = "FAIL", explain(error)
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, (result, detail))
        wrong = [f"rank {rank}: {text}" for rank, (each, text) in enumerate(gathered) if each == "FAIL"]
        failed = failed or bool(wrong)
        _print(f"{name:<{_NAME}} | {'FAIL' if wrong else gathered[0][0]:<6} | {'; '.join(wrong[:4]) or gathered[0][1]}")
    distributed.barrier()
    distributed.destroy_process_group()
    return int(failed)


_Check = Callable[[torch.device], tuple[Result, str]]


def _checks(size: int) -> Iterable[tuple[str, _Check]]:
    yield "cluster", _cluster
    yield "fsdp2", lambda device: _compare(device, _fsdp2)
    yield "tensor parallel", lambda device: _compare(device, _tensor_parallel)
    if size >= 4 and size % 2 == 0:
        yield "fsdp2, tensor parallel", lambda device: _compare(device, _both)
        yield "hybrid", lambda device: _compare(device, _hybrid)
    yield "a late rank", _late


def _cluster(device: torch.device) -> tuple[Result, str]:
    """List hosts and addresses; fail if a rank uses a loopback address although there are several hosts."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, (socket.gethostname(), own_address()))
    hosts = {host for host, _ in found}
    local = [address for _, address in found if address.startswith(("127.", "::1"))]
    detail = f"{len(found)} ranks on {len(hosts)} hosts, {device.type}, torch {torch.__version__}, {found[-1][1]}"
    if len(hosts) > 1 and local:
        return "FAIL", f"ranks listen at {local[0]}, which other hosts do not reach: set GLOO_SOCKET_IFNAME ({detail})"
    return "INFO", detail


def _compare(device: torch.device, spread: Callable[[nn.Module, torch.device], nn.Module]) -> tuple[Result, str]:
    plain = _train(device, spread, watched=False)
    seen = _train(device, spread, watched=True)
    wrong = [] if plain.losses == seen.losses else ["losses differ with a monitor"]
    wrong += [f"{seen.collectives} collectives in the monitor's steps"] if seen.collectives else []
    wrong += [f"a step of the monitor took {seen.longest:.2f} s"] if seen.longest > _WAIT else []
    wrong += list(seen.errors)
    layers = [layer for report in seen.reports for layer in report.new]
    off = max((_difference(layer, seen.norms) for layer in layers if layer.status == "ok"), default=0.0)
    if distributed.get_rank() == 0:
        count = sum(layer.status == "ok" for layer in layers)
        wrong += [] if count else ["nothing was read"]
        wrong += [f"a norm is off by {off:.1e}"] if off > 1e-4 else []
        wrong += [f"{layer.name}: {layer.reason}" for layer in layers if layer.status != "ok"]
        detail = f"{count} readings, norms within {off:.1e}, losses equal, longest step {1000 * seen.longest:.0f} ms"
    else:
        detail = ""
    return ("FAIL", "; ".join(wrong[:3])) if wrong else ("PASS", detail)


def _late(device: torch.device) -> tuple[Result, str]:
    """Measure the delay of the other ranks if one rank sleeps at a point where no training waits for it."""
    model = _fsdp2(_network(), device)
    sink = MemorySink()
    longest = 0.0
    with watch(model, every=1, budget=None, sinks=[sink], mode="thread") as monitor:
        for step in range(_STEPS):
            distributed.barrier()
            if step == _STEPS - 2 and distributed.get_rank() == distributed.get_world_size() - 1:
                time.sleep(_LATE)
            start = time.monotonic()
            monitor.step()
            longest = max(longest, (time.monotonic() - start) if step else 0.0)
    detail = f"longest step {1000 * longest:.0f} ms while a rank was {_LATE:g} s late"
    return ("FAIL" if longest > _WAIT else "PASS"), detail


def _train(device: torch.device, spread: Callable[..., nn.Module], *, watched: bool) -> Run:
    model = spread(_network(), device)
    weights: dict[str, Any] = dict(model.named_parameters())
    # Not `foreach`, the default on CUDA, which rejects sharded and plain weights in one group.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    generator = torch.Generator().manual_seed(0)
    sink, losses, norms = MemorySink(), [], []
    monitor = watch(model, every=1, budget=None, sinks=[sink], mode="thread") if watched else None
    collectives, longest = 0, 0.0
    for step in range(_STEPS):
        loss = model(torch.randn(8, 256, generator=generator).to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(_whole(loss)))
        if monitor is not None:
            start = time.monotonic()
            with CommDebugMode() as counted:  # type: ignore[no-untyped-call]  # torch leaves it untyped
                monitor.step()
            longest = max(longest, (time.monotonic() - start) if step else 0.0)
            collectives += counted.get_total_counts()
            norms.append({name: float(_whole(weight).norm()) for name, weight in weights.items()})
    if monitor is None:
        return Run(losses)
    monitor.close()
    return Run(losses, tuple(sink.reports), tuple(norms), collectives, longest, tuple(faults_of(monitor)))


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


def _difference(layer: LayerReport, norms: Sequence[dict[str, float]]) -> float:
    """Return the relative difference between the norm in a reading and the norm of the whole weight."""
    norm = norms[layer.step - 1][f"{layer.name}.weight"]
    return abs(layer.measures["frobenius_norm"] - norm) / norm


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh(), nn.Linear(256, 96))


def _fsdp2(model: Any, device: torch.device, mesh: Any = None) -> nn.Module:
    mesh = mesh or init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    whole: nn.Module = model
    return whole


def _tensor_parallel(model: nn.Module, device: torch.device, mesh: Any = None) -> nn.Module:
    mesh = mesh or init_device_mesh(device.type, (distributed.get_world_size(),))
    return parallelize_module(model.to(device), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def _both(model: nn.Module, device: torch.device) -> nn.Module:
    mesh = init_device_mesh(device.type, (distributed.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    return _fsdp2(_tensor_parallel(model, device, mesh["tensor"]), device, mesh["data"])


def _hybrid(model: nn.Module, device: torch.device) -> nn.Module:
    shape = (2, distributed.get_world_size() // 2)
    return _fsdp2(model, device, init_device_mesh(device.type, shape, mesh_dim_names=("replicas", "shards")))


def _print(line: str) -> None:
    if distributed.get_rank() == 0:
        print(line, flush=True)
