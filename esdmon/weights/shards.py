"""Find the weights that are sharded over the ranks of a job, and which part of each this rank holds.

A module shows them in many shapes: DTensors, 1-D slices (FSDP1), empty placeholders (ZeRO-3), and between a forward and
its backward, or for as long as the user keeps them gathered, as whole parameters that are a step old. So what a module
shows cannot be trusted: the wrappers say which weights they manage, and which parameter the optimizer holds instead.
All are recognised by type names and attributes, without importing the libraries that made them. What this rank holds is
computed from metadata, and read with `to_local()` and nothing after it: any other operation on a DTensor, even a slice,
may be a collective.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon import torch_private
from esdmon.schedule.fragments import Fragment
from esdmon.torch_private import ManagedParameter
from esdmon.weights.splits import Split, fragment_of

SHARDED = "sharded over ranks: analyze() reads whole models, watch() on every rank of the job reads sharded ones"
_UNKNOWN = "sharded over ranks in a way that esdmon does not know, or that this version of {} stores elsewhere"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A weight of which this rank holds a part."""

    parameter: Tensor
    """The tensor that the optimizer holds; several weights have the same one where they are flattened together."""
    shape: torch.Size
    """Shape of the whole weight, as far as known."""
    dtype: torch.dtype
    """Of the part that is read."""
    fragment: Fragment | None = None
    """The part of this rank; None where it holds none."""
    read: Callable[[], Tensor] | None = None
    """Returns the elements of the fragment, on the weight's device; None for a weight that cannot be read."""
    group: int = 0
    """The first rank of those that share the weight."""
    grid: torch.Size | None = None
    """Shape of as many elements in which the fragment is a box; None: that of the weight."""
    reason: str = ""
    """Why it cannot be read; empty where it can be put together."""

    @property
    def box_shape(self) -> torch.Size:
        """Return the shape in which the fragment is a box."""
        return self.shape if self.grid is None else self.grid

    @property
    def is_whole(self) -> bool:
        """Return whether this rank holds all of the weight."""
        return self.fragment is not None and self.fragment.n_elements == math.prod(self.shape)

    def local(self) -> Tensor:
        """Return this rank's part, without gradient: a box in its shape, an interval in one dimension."""
        if self.read is None or self.fragment is None:
            return torch.empty(0, dtype=self.dtype)
        with torch.no_grad():
            return self.read().detach()


Shards = dict[int, dict[str, Shard]]
"""id of a module -> attribute -> shard."""
_Owners = Sequence[tuple[nn.Module, str]]
"""Module and attribute of each layer that uses a weight."""
_Sharded = tuple[_Owners, Any, Callable[[], Shard | None]]
"""Who uses a weight, the tensor that the optimizer holds, and what describes the shard."""


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
            read, group = partial(_itself, weight), groups[id(weight)]
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
    """Yield each sharded weight once: those that a wrapper manages, whatever the modules show, then the others."""
    modules = list(model.modules())
    managed = [each for module in modules for each in _managed_by(module)]
    yield from managed
    known = {(id(module), name) for owners, _, _ in managed for module, name in owners}
    others: dict[int, tuple[list[tuple[nn.Module, str]], Any, Callable[[], Shard | None]]] = {}
    gated: set[int] = set()
    for module in modules:
        gated |= _gated_layers(module)
        for name, parameter in torch_private.parameters_of(module).items():
            if parameter is None or (id(module), name) in known:
                continue
            describe = _describer(parameter, module, is_gated=id(module) in gated)
            if describe is not None:
                owners, *_ = others.setdefault(id(parameter), ([], parameter, describe))
                owners.append((module, name))
    yield from others.values()


_SPLIT_SIDES = {"ColumnParallelLinear": 0, "RowParallelLinear": 1, "VocabParallelEmbedding": 0}
"""Class of Megatron -> the side of its weight that is split."""


def _is_of_megatron(parameter: Any, module: nn.Module | None) -> bool:
    """Return whether Megatron splits a parameter, as it marks it; weights that it does not initialise have no mark."""
    is_marked = getattr(parameter, "tensor_model_parallel", False) is True
    is_known = type(module).__name__ in _SPLIT_SIDES and type(module).__module__.startswith("megatron.")
    return is_marked or (is_known and parameter.ndim == 2 and torch.distributed.is_initialized())


def shard_of(tensor: Any) -> Shard | None:
    """Return the shard that a tensor is, of DTensor, ZeRO-3 or Megatron; None for an ordinary tensor."""
    describe = _describer(tensor, None, is_gated=False)
    return None if describe is None else describe()


def _describer(parameter: Any, module: nn.Module | None, *, is_gated: bool) -> Callable[[], Shard | None] | None:
    """Return what describes the shard that a parameter is; None for an ordinary parameter.

    Args:
        parameter: the parameter.
        module: has it; None for a tensor of a mapping.
        is_gated: whether it is of a layer of Megatron that holds a gate and an up-projection.
    """
    if hasattr(parameter, "placements"):
        return partial(_of_dtensor, parameter)
    if hasattr(parameter, "ds_id"):
        return partial(_of_zero3, parameter)
    if hasattr(parameter, "tensor_model_parallel") and type(module).__module__.startswith("deepspeed."):
        return partial(_of_autotp, parameter, module)
    if _is_of_megatron(parameter, module):
        return partial(_of_megatron, parameter, module, is_gated=is_gated)
    return None


def _of_dtensor(parameter: Any) -> Shard:
    unknown = _unknown(parameter)
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
        return Shard(parameter, shape, parameter.dtype, reason=_UNKNOWN.format("DeepSpeed"))
    start = rank * part.numel()
    count = max(0, min(part.numel(), shape.numel() - start))
    fragment = Fragment.interval(start, start + count) if count else None
    return Shard(parameter, shape, part.dtype, fragment, partial(_zero3_elements, parameter, count), min(ranks))


def _zero3_elements(parameter: Any, count: int) -> Tensor:
    part: Tensor = parameter.ds_tensor
    return part.detach().reshape(-1)[:count]


_SIDES_OF_AUTOTP = {"LinearLayer": 0, "LinearAllreduce": 1, "LinearAllreduceWithReplicatedInput": 1}
"""Class of DeepSpeed -> the side of its weight that is split; others split fused projections in orders of their own."""


def _of_autotp(parameter: Any, module: Any) -> Shard:
    """Return the part of DeepSpeed's tensor parallel: an interval of one side, whose lengths the layer lists."""
    try:
        side = _SIDES_OF_AUTOTP[type(module).__name__]
        lengths, index = vars(module)["_partition_sizes"], module.tp_index
        shape, offset = list(parameter.shape), [0] * parameter.ndim
        is_known = lengths[index] == shape[side]
        shape[side], offset[side] = sum(lengths), sum(lengths[:index])
        first = min(torch.distributed.get_process_group_ranks(module.mp_group))
    except Exception:  # noqa: BLE001 -- another version of DeepSpeed, or a layer of fused projections
        is_known = False
    if not is_known:
        return Shard(parameter, parameter.shape, parameter.dtype, reason=_UNKNOWN.format("DeepSpeed"))
    fragment, read = Fragment(tuple(offset), tuple(parameter.shape)), partial(_itself, parameter)
    return Shard(parameter, torch.Size(shape), parameter.dtype, fragment, read, first)


def _gated_layers(module: nn.Module) -> set[int]:
    """Return the id of the layer below an MLP of Megatron that holds a gate and an up-projection."""
    layer = torch_private.children_of(module).get("linear_fc1")
    is_gated = getattr(vars(module).get("config"), "gated_linear_unit", False) is True
    return {id(layer)} if layer is not None and is_gated else set()


def _of_megatron(parameter: Any, module: nn.Module | None, *, is_gated: bool) -> Shard | None:
    """Return the part of Megatron's tensor parallel; None where one rank holds all of the weight, which is marked too.

    A rank holds an equal part of one side, or of each of the `partition_stride` blocks that lie along it. A gate and
    an up-projection in one weight are two blocks, which versions before 0.16 do not say.
    """
    try:
        group = _tensor_parallel_group(parameter, module)
        ranks, rank = torch.distributed.get_process_group_ranks(group), torch.distributed.get_rank(group)
        split = getattr(parameter, "partition_dim", -1)  # -1 is also what Megatron marks others with
        split = _SPLIT_SIDES[type(module).__name__] if split < 0 else split
        part, side, blocks = _part_of_megatron(parameter, module, split, is_gated=is_gated)
        whole = [*part[:side], len(ranks) * part[side], *part[side + 1 :]]
        grid, fragment = fragment_of(whole, [Split(side, len(ranks), rank, blocks)])
        shape = list(parameter.shape)
        shape[split] *= len(ranks)
    except Exception:  # noqa: BLE001 -- another version of Megatron, a group that is closed, or no layer
        return Shard(parameter, parameter.shape, parameter.dtype, reason=_UNKNOWN.format("Megatron or DeepSpeed"))
    if len(ranks) == 1:
        return None
    read = partial(_itself, parameter)
    return Shard(parameter, torch.Size(shape), parameter.dtype, fragment, read, min(ranks), torch.Size(grid))


def _part_of_megatron(parameter: Any, module: Any, split: int, *, is_gated: bool) -> tuple[tuple[int, ...], int, int]:
    """Return the shape of the part that a rank holds, the side that is split, and the blocks along it.

    Of a `GroupedMLP` it is that of the experts in the memory of its weights, (experts, rows, columns).
    """
    if not is_grouped_mlp(module):
        return tuple(parameter.shape), split, max(getattr(parameter, "partition_stride", 1), 1 + is_gated)
    experts, width = module.num_local_experts, module.config.hidden_size
    if split == 1:
        return (experts, width, parameter.shape[1] // experts), 2, 1 + module.config.gated_linear_unit
    return (experts, parameter.shape[0] // experts, width), 1, 1


def is_grouped_mlp(module: nn.Module | None) -> bool:
    """Return whether a module is Megatron's `GroupedMLP`, whose experts follow one another in the memory of a weight.

    `weight1` has for each expert (inputs, outputs), `weight2` (outputs, inputs), both of fewer sides.
    """
    return type(module).__name__ == "GroupedMLP" and type(module).__module__.startswith("megatron.")


def _itself(parameter: Tensor) -> Tensor:
    return parameter


def _tensor_parallel_group(parameter: Any, module: nn.Module | None) -> Any:
    """Return the ranks that share a parameter: those that its layer names, or the job's; experts may have others."""
    named = (vars(module).get(attribute) for attribute in ("tp_group", "_tp_group")) if module is not None else ()
    group = next((group for group in named if group is not None), None)
    if group is not None:
        return group
    state: Any = sys.modules["megatron.core.parallel_state"]
    is_expert = not getattr(parameter, "allreduce", True)
    return state.get_expert_tensor_parallel_group() if is_expert else state.get_tensor_model_parallel_group()


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
                yield ((each, name),), parameter, partial(_unknown, parameter)


def _unknown(parameter: Tensor) -> Shard:
    return Shard(parameter, parameter.shape, parameter.dtype, reason=_UNKNOWN.format("torch"))
