"""A training that is cut over ranks in one way, saved, and resumed on another number of ranks, cut in another way.

Gradients are given and not computed, so that the weights are the same to the last bit however they are cut. From step
`CUT` on one layer is cut down to 40 directions, which an alert is for; from step `FROZEN` on another does not train.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import esdmon

SHAPES = {"first": (96, 64), "second": (128, 96), "third": (64, 128), "fourth": (72, 64)}
EVERY, SAVED, KILLED, STEPS, CUT, FROZEN = 3, 12, 17, 30, 8, 19


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(columns, rows, bias=False) for name, (rows, columns) in SHAPES.items()})


def spread(way: str, model: nn.ModuleDict, rank: int, size: int) -> nn.Module:
    """The part of a rank: all in one piece, as DDP has it, a shard of all, or a stage of a pipeline."""
    if way == "fsdp2":
        for layer in model.values():
            fully_shard(layer)
    if way == "stages":
        return nn.ModuleDict({name: layer for n, (name, layer) in enumerate(model.items()) if n % size == rank})
    return model


def cut_alike(whole: Tensor, weight: Tensor) -> Tensor:
    return distribute_tensor(whole, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else whole


def change(model: nn.Module, step: int) -> None:
    """Give the gradients of a step, cut down the first layer, freeze the last."""
    for name, weight in model.named_parameters():
        layer = name.split(".")[0]
        if layer == "fourth" and step >= FROZEN:
            weight.requires_grad_(False).grad = None  # noqa: FBT003 -- of torch
            continue
        generator = torch.Generator().manual_seed(100 * step + list(SHAPES).index(layer))
        gradient = torch.randn(SHAPES[layer], generator=generator)
        if layer == "first" and step >= CUT:
            left, right = torch.randn(96, 40, generator=generator), torch.randn(40, 64, generator=generator)
            with torch.no_grad():
                weight.copy_(cut_alike(left @ right / 20, weight))
            gradient.zero_()
        weight.grad = cut_alike(gradient, weight)


def state_of(model: nn.Module, size: int) -> dict[str, Tensor]:
    """All weights, whole, on rank 0."""
    own = {
        name: weight.full_tensor() if isinstance(weight, DTensor) else weight.detach().clone()
        for name, weight in model.named_parameters()
    }
    gathered: list[Any] = [own]
    if size > 1:
        gathered = [None] * size
        distributed.all_gather_object(gathered, own)
    return {name: weight for part in gathered for name, weight in part.items()}


def rank_of_a_run(rank: int, way: str, folder: str, size: int) -> None:
    """Train until `KILLED` and save at `SAVED`; where there is a saved state, go on from it to the end."""
    torch.set_num_threads(1)
    saved, place = Path(folder) / "state.pt", Path(folder)
    is_resumed = saved.exists()
    if size > 1:
        store = f"file://{folder}/store-{is_resumed}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    model = spread(way, network(), rank, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    monitor = esdmon.watch(model, optimizer, every=EVERY, budget=None, sinks=f"jsonl:{folder}/esdmon.jsonl")
    first = 1
    if is_resumed:
        state = torch.load(saved, weights_only=True)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(cut_alike(state["model"][name], weight))
        monitor.load_state_dict(state["monitor"])
        first = SAVED + 1
    for step in range(first, (STEPS if is_resumed else KILLED) + 1):
        change(model, step)
        if size > 1:
            distributed.barrier()  # as the collectives of a training do
        optimizer.step()
        if step % EVERY == 0:
            monitor.flush(20)
        if step == SAVED and not is_resumed:
            weights = state_of(model, size)
            if rank == 0:
                torch.save({"model": weights, "monitor": monitor.state_dict()}, saved)
    monitor.close()
    result = {"errors": [fault.message for fault in monitor.errors], "dropped": monitor.dropped}
    (place / f"result-{is_resumed}-{rank}.json").write_text(json.dumps(result))
    if size > 1:
        distributed.barrier()
        distributed.destroy_process_group()
