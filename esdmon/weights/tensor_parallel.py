"""Describe the part that a rank holds of a weight split by the tensor parallel of Megatron or of DeepSpeed (AutoTP).

Both split plain parameters. The split follows from attributes of the parameter and from its layer.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from esdmon.schedule.fragments import Fragment
from esdmon.weights import torch_private
from esdmon.weights.shard import Shard, itself, unknown_shard
from esdmon.weights.splits import Split, fragment_of

_SPLIT_SIDES = {"ColumnParallelLinear": 0, "RowParallelLinear": 1, "VocabParallelEmbedding": 0}
"""Class of Megatron -> the side of its weight that is split."""
_SIDES_OF_AUTOTP = {"LinearLayer": 0, "LinearAllreduce": 1, "LinearAllreduceWithReplicatedInput": 1}
"""Class of DeepSpeed -> the side of its weight that is split; others split fused projections in orders of their own."""


def describer_of_split(
    parameter: Any, module: nn.Module | None, *, is_gated: bool
) -> Callable[[], Shard | None] | None:
    """Return a function that describes a split parameter; None for a parameter that neither library splits.

    Args:
        parameter: the parameter.
        module: the module of the parameter; None for a tensor of a mapping.
        is_gated: whether its layer is one of Megatron with a gate and an up-projection.
    """
    if hasattr(parameter, "tensor_model_parallel") and type(module).__module__.startswith("deepspeed."):
        return partial(_of_autotp, parameter, module)
    if _is_of_megatron(parameter, module):
        return partial(_of_megatron, parameter, module, is_gated=is_gated)
    return None


def gated_layers(module: nn.Module) -> set[int]:
    """Return the id of the layer below an MLP of Megatron that holds a gate and an up-projection."""
    layer = torch_private.children_of(module).get("linear_fc1")
    is_gated = getattr(vars(module).get("config"), "gated_linear_unit", False) is True
    return {id(layer)} if layer is not None and is_gated else set()


def is_grouped_mlp(module: nn.Module | None) -> bool:
    """Return whether a module is Megatron's `GroupedMLP`, whose experts follow one another in the memory of a weight.

    `weight1` has for each expert (inputs, outputs), `weight2` (outputs, inputs), both of fewer sides.
    """
    return type(module).__name__ == "GroupedMLP" and type(module).__module__.startswith("megatron.")


def _is_of_megatron(parameter: Any, module: nn.Module | None) -> bool:
    """Return whether Megatron splits a parameter, as it marks it; weights that it does not initialise have no mark."""
    is_marked = getattr(parameter, "tensor_model_parallel", False) is True
    is_known = type(module).__name__ in _SPLIT_SIDES and type(module).__module__.startswith("megatron.")
    return is_marked or (is_known and parameter.ndim == 2 and torch.distributed.is_initialized())


def _of_megatron(parameter: Any, module: nn.Module | None, *, is_gated: bool) -> Shard | None:
    """Return the part of Megatron's tensor parallel; None if one rank holds all of the weight, which is marked too.

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
        return unknown_shard(parameter, "Megatron or DeepSpeed")
    if len(ranks) == 1:
        return None
    read = partial(itself, parameter)
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


def _tensor_parallel_group(parameter: Any, module: nn.Module | None) -> Any:
    """Return the ranks that share a parameter: those that its layer names, or the job's; experts may have others."""
    named = (vars(module).get(attribute) for attribute in ("tp_group", "_tp_group")) if module is not None else ()
    group = next((group for group in named if group is not None), None)
    if group is not None:
        return group
    state: Any = sys.modules["megatron.core.parallel_state"]
    is_expert = not getattr(parameter, "allreduce", True)
    return state.get_expert_tensor_parallel_group() if is_expert else state.get_tensor_model_parallel_group()


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
        return unknown_shard(parameter, "DeepSpeed")
    fragment, read = Fragment(tuple(offset), tuple(parameter.shape)), partial(itself, parameter)
    return Shard(parameter, torch.Size(shape), parameter.dtype, fragment, read, first)
