"""Find the weights that are sharded over the ranks of a job, and the part of each that this rank holds.

The parameters of a module have many forms: DTensors, 1-D slices (FSDP1), empty placeholders (ZeRO-3), or whole
parameters that are a step old, between a forward and its backward or while the user keeps them gathered. So the
parameters of the module cannot be trusted. Instead, the wrappers list the weights that they manage, and the parameters
that the optimizer holds for them. All are recognised by type names and attributes, without importing the libraries that
made them. The part of this rank is computed from metadata, and read with `to_local()` and no further operation: any
other operation on a DTensor, even a slice, may be a collective.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.schedule.fragments import Fragment
from esdmon.weights import torch_private
from esdmon.weights.shard import Shard, itself, unknown_shard
from esdmon.weights.splits import Split, fragment_of
from esdmon.weights.tensor_parallel import describer_of_split, gated_layers
from esdmon.weights.torch_private import ManagedParameter

Shards = dict[int, dict[str, Shard]]
"""id of a module -> attribute -> shard."""
_Owners = Sequence[tuple[nn.Module, str]]
"""Module and attribute of each layer that uses a weight."""
_Sharded = tuple[_Owners, Any, Callable[[], Shard | None]]
"""The users of a weight, the tensor that the optimizer holds, and the function that describes the shard."""


def find_shards(model: nn.Module) -> Shards:
    """Return the shards of a model by module and attribute; empty for a model that is not sharded."""
    found: Shards = {}
    for owners, _, describe in _sharded(model):
        shard = describe()
        if shard is not None:
            for module, name in owners:
                found.setdefault(id(module), {})[name] = shard
    return found


def with_unsharded(model: nn.Module, shards: Shards, groups: Mapping[int, int]) -> Shards:
    """Return shards, and besides them whole parameters: those in `groups`, by id, with the first rank that has it."""
    whole: dict[int, Shard] = {}
    every: Shards = {key: dict(own) for key, own in shards.items()}
    for module in model.modules():
        for name, weight in torch_private.parameters_of(module).items():
            if weight is None or id(weight) not in groups:
                continue
            read, group = partial(itself, weight), groups[id(weight)]
            shard = Shard(weight, weight.shape, weight.dtype, Fragment.whole(weight.shape), read, group)
            every.setdefault(id(module), {})[name] = whole.setdefault(id(weight), shard)
    return every


def sharded_parameters(model: nn.Module) -> dict[int, dict[str, int]]:
    """Return the ids of the tensors that the optimizer holds, by id of the module and attribute, of sharded weights.

    That takes a tenth of the time of `find_shards`: whether they have changed is looked up at each due step.
    """
    found: dict[int, dict[str, int]] = {}
    for owners, parameter, _ in _sharded(model):
        for module, name in owners:
            found.setdefault(id(module), {})[name] = id(parameter)
    return found


def _sharded(model: nn.Module) -> Iterator[_Sharded]:
    """Yield each sharded weight once: first the weights that a wrapper manages, then the others."""
    modules = list(model.modules())
    managed = [each for module in modules for each in _managed_by(module)]
    yield from managed
    known = {(id(module), name) for owners, _, _ in managed for module, name in owners}
    others: dict[int, tuple[list[tuple[nn.Module, str]], Any, Callable[[], Shard | None]]] = {}
    gated: set[int] = set()
    for module in modules:
        gated |= gated_layers(module)
        for name, parameter in torch_private.parameters_of(module).items():
            if parameter is None or (id(module), name) in known:
                continue
            describe = _describer(parameter, module, is_gated=id(module) in gated)
            if describe is not None:
                owners, *_ = others.setdefault(id(parameter), ([], parameter, describe))
                owners.append((module, name))
    yield from others.values()


def shard_of(tensor: Any) -> Shard | None:
    """Return the shard that a tensor is, of DTensor, ZeRO-3 or Megatron; None for an ordinary tensor."""
    describe = _describer(tensor, None, is_gated=False)
    return None if describe is None else describe()


def _describer(parameter: Any, module: nn.Module | None, *, is_gated: bool) -> Callable[[], Shard | None] | None:
    """Return a function that describes the shard of a parameter; None for an ordinary parameter.

    Args:
        parameter: the parameter.
        module: the module of the parameter; None for a tensor of a mapping.
        is_gated: whether its layer is one of Megatron with a gate and an up-projection.
    """
    if hasattr(parameter, "placements"):
        return partial(_of_dtensor, parameter)
    if hasattr(parameter, "ds_id"):
        return partial(_of_zero3, parameter)
    return describer_of_split(parameter, module, is_gated=is_gated)


def _of_dtensor(parameter: Any) -> Shard:
    unknown = unknown_shard(parameter, "torch")
    try:
        if any(placement.is_partial() for placement in parameter.placements):
            return replace(unknown, reason="a DTensor of partial sums, which is no weight yet")
        splits, is_held = torch_private.splits_of_dtensor(parameter)
        grid, box = fragment_of(parameter.shape, [Split(*split) for split in splits])
        fragment = box if is_held else None
        with torch.no_grad():
            held = parameter.to_local().numel()
        group = int(parameter.device_mesh.mesh.min())
    except Exception:  # noqa: BLE001 -- another version of torch, or a part that cannot be a box
        return unknown
    if held != (0 if fragment is None else fragment.n_elements):
        return unknown
    read = parameter.to_local
    return Shard(parameter, parameter.shape, parameter.dtype, fragment, read, group, torch.Size(grid))


def _of_zero3(parameter: Any) -> Shard:
    """Return the part of ZeRO-3: an interval of the flattened weight, as long on each rank but the last."""
    shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
    part = getattr(parameter, "ds_tensor", None)
    if part is None or getattr(getattr(part, "status", None), "name", "AVAILABLE") != "AVAILABLE":
        return Shard(parameter, shape, parameter.dtype, reason="sharded over ranks (ZeRO-3) and not in memory")
    try:
        group = parameter.ds_process_group
        ranks, rank = torch.distributed.get_process_group_ranks(group), torch.distributed.get_rank(group)
    except Exception:  # noqa: BLE001 -- another version of DeepSpeed, or a group that is closed
        return replace(unknown_shard(parameter, "DeepSpeed"), shape=shape)
    start = rank * part.numel()
    count = max(0, min(part.numel(), shape.numel() - start))
    fragment = Fragment.interval(start, start + count) if count else None
    return Shard(parameter, shape, part.dtype, fragment, partial(_zero3_elements, parameter, count), min(ranks))


def _zero3_elements(parameter: Any, count: int) -> Tensor:
    part: Tensor = parameter.ds_tensor
    return part.detach().reshape(-1)[:count]


def _managed_by(module: nn.Module) -> list[_Sharded]:
    kind: Any = type(module)
    find = _manager(kind)
    if find is None:
        return []
    try:
        return list(find(module))
    except Exception:  # noqa: BLE001 -- another version of torch: any weight below the wrapper may be sharded
        return list(_all_below(module))


@lru_cache(maxsize=1024)
def _manager(kind: type) -> Callable[[nn.Module], Iterator[_Sharded]] | None:
    names = {each.__name__ for each in kind.__mro__}
    if "FSDPModule" in names:
        return _managed_by_fsdp2
    return _managed_by_fsdp1 if "FullyShardedDataParallel" in names else None


def _managed_by_fsdp2(module: nn.Module) -> Iterator[_Sharded]:
    for managed in torch_private.fsdp2_parameters(module):
        yield managed.owners, managed.parameter, partial(_of_dtensor, managed.parameter)


def _managed_by_fsdp1(module: nn.Module) -> Iterator[_Sharded]:
    group = getattr(module, "process_group", None)
    first = min(torch.distributed.get_process_group_ranks(group)) if torch.distributed.is_initialized() else 0
    for managed in torch_private.fsdp1_parameters(module):
        yield managed.owners, managed.parameter, partial(_of_fsdp1, managed, first)


def _of_fsdp1(managed: ManagedParameter, group: int) -> Shard:
    start, stop = managed.interval or (0, 0)
    fragment = Fragment.interval(start, stop) if stop > start else None
    return Shard(managed.parameter, managed.shape, managed.parameter.dtype, fragment, managed.read, group)


def _all_below(module: nn.Module) -> Iterator[_Sharded]:
    for each in module.modules():
        for name, parameter in torch_private.parameters_of(each).items():
            if parameter is not None:
                yield ((each, name),), parameter, partial(unknown_shard, parameter, "torch")
