"""Read weights that are sharded over ranks: a sample of this rank's part, and the whole weight after assembly."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from esdmon.errors import UnreadableError
from esdmon.schedule.fragments import Fragment, Region
from esdmon.weights.device.sample import sample_tensor
from esdmon.weights.matrix import Matrix, mark_unreadable
from esdmon.weights.outline import Outline, are_filled, filled
from esdmon.weights.shard import SHARDED, Shard

_MIXED = "computed from parameters of which some are sharded over ranks, and others are packed or no parameters"


def unsharded_beside(matrices: Iterable[Matrix], outline: Outline) -> dict[int, int]:
    """Return the parameters that a matrix is computed from besides sharded ones, as the factors of LoRA beside a base.

    Returns:
        By id of the parameter, the first rank of those that share the others; empty without such matrices.
    """
    found: dict[int, int] = {}
    for matrix in matrices:
        weights = () if matrix.unreadable else matrix.parameters()
        groups = [shard.group for weight in weights if (shard := outline.shard_of(weight)) is not None]
        for weight in weights if 0 < len(groups) < len(weights) else ():
            if outline.shard_of(weight) is None and type(weight) is nn.Parameter and weight.is_floating_point():
                found[id(weight)] = min(groups)
    return found


def with_shards(matrix: Matrix, outline: Outline, names: Mapping[int, Sequence[str]]) -> Matrix:
    """Return a matrix of an outline with the shards behind it; one without any is returned unchanged.

    Args:
        matrix: as it was found in the outline.
        outline: in which a stand-in on the meta device has the place of each sharded parameter.
        names: of all parameters of the outline, by id.
    """
    weights = matrix.parameters()
    pairs = tuple((weight, shard) for weight in weights if (shard := outline.shard_of(weight)) is not None)
    if not pairs:
        return matrix
    held = tuple(shard.parameter for _, shard in pairs)
    reason = matrix.unreadable or next((shard.reason for _, shard in pairs if shard.reason), "")
    reason = reason or (_MIXED if len(pairs) < len(weights) else "")
    if reason:
        shape = (0, 0, 0) if matrix.unreadable else matrix.stack_shape()
        return replace(mark_unreadable(matrix, reason, parameters=held, shape=shape), shards=pairs)
    return replace(
        matrix,
        read=partial(_read, pairs, matrix.read),
        made_of=lambda: held,
        outline=matrix.outline or matrix.read,
        probe=partial(_sample_local, pairs),
        shards=pairs,
        parameter_names=tuple(names[id(weight)][0] for weight, _ in pairs),
        region=_region(matrix, pairs[0][0]) if matrix.is_plain and len(pairs) == 1 else None,
    )


def _region(matrix: Matrix, stand_in: Tensor) -> Region | None:
    """Return the elements of a parameter that a matrix is; None where it is computed from them."""
    with torch.no_grad():
        stack = matrix.to_stack(stand_in)
    if stack.untyped_storage().nbytes() != stand_in.untyped_storage().nbytes():  # a copy of some of its elements
        return None
    return Region.of(int(stack.storage_offset()), stack.shape, stack.stride())


def _read(pairs: tuple[tuple[Tensor, Shard], ...], read: Callable[[], Tensor]) -> Tensor:
    """Return the weight if its parameters are filled in, or all of them are on this rank.

    Raises:
        UnreadableError: otherwise.
    """
    if are_filled(tuple(stand_in for stand_in, _ in pairs)):
        return read()
    if not all(shard.is_whole for _, shard in pairs):
        raise UnreadableError("skipped", SHARDED)
    with filled({id(stand_in): shard.local().reshape(shard.shape) for stand_in, shard in pairs}):
        return read()


def _sample_local(pairs: tuple[tuple[Tensor, Shard], ...], size: int) -> Tensor:
    """Return up to `size` elements of this rank's part of the parameters behind a weight.

    Raises:
        UnreadableError: if it holds none.
    """
    parts = [local for _, shard in pairs if (local := shard.local()).numel()]
    if not parts:
        raise UnreadableError("skipped", "this rank holds no part of it")
    return torch.cat([sample_tensor(part, max(1, size // len(parts))) for part in parts])


def part_of(whole: Tensor, fragment: Fragment) -> Tensor:
    """Return the view of a whole parameter that is a fragment of it."""
    if fragment.is_interval:
        return whole.view(-1).narrow(0, fragment.offset[0], fragment.size[0])
    for dim, (start, length) in enumerate(zip(fragment.offset, fragment.size, strict=True)):
        whole = whole.narrow(dim, start, length)
    return whole


def box_of(region: Region, shard: Shard) -> Fragment | None:
    """Return a region of a parameter as a box, in the shape in which this rank's fragment is one; None if it is not."""
    is_interval = shard.fragment is not None and shard.fragment.is_interval
    return region.box((math.prod(shard.shape),) if is_interval else shard.box_shape)


def local_part(region: Region, shard: Shard) -> Tensor:
    """Return the elements of a region that this rank's fragment has, without gradient; a view where possible.

    Raises:
        UnreadableError: where this rank has no fragment, or the region is not a box in the shape in which that is one.
    """
    fragment, box = shard.fragment, box_of(region, shard)
    if fragment is None or box is None:
        raise UnreadableError("skipped", "it is not one block of this rank's part of the parameter")
    local = shard.local().reshape(fragment.size)
    for dim, (own, length) in enumerate(zip(fragment.offset, fragment.size, strict=True)):
        start = min(max(box.offset[dim] - own, 0), length)
        stop = min(box.offset[dim] + box.size[dim] - own, length)
        local = local.narrow(dim, start, max(0, stop - start))
    return local
