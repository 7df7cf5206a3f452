"""W − W₀: what training has changed, against a state of the same model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.weights.matrix import Matrix, UnreadableError


def differences(
    chosen: Sequence[Matrix], reference: Sequence[Matrix], kept: dict[str, Callable[[], Tensor]] | None = None
) -> tuple[Matrix, ...]:
    """Each matrix that the reference has too as its difference from there.

    What shares memory with the model, as a `state_dict()` does, is copied first: it would move along.

    Args:
        chosen: the matrices to read.
        reference: those of the reference.
        kept: how each was found to be read at an earlier call, which goes before; new ones are added.

    Raises:
        InputError: where they have no name in common.
    """
    before = {matrix.name: matrix for matrix in reference}
    common = tuple(matrix for matrix in chosen if matrix.name in before)
    if not common:
        msg = (
            f"reference= has no matrix of the model: it has {', '.join(list(before)[:4]) or 'none'}, "
            f"the model {', '.join(matrix.name for matrix in chosen[:4])}"
        )
        raise InputError(msg)
    kept = {} if kept is None else kept
    for matrix in common:
        if matrix.name not in kept:
            kept[matrix.name] = _kept(matrix, before[matrix.name])
    return tuple(
        replace(
            matrix,
            read=partial(_difference, matrix.read, kept[matrix.name]),
            made_of=matrix.parameters,
            outline=matrix.outline or matrix.read,
            view="difference",
        )
        for matrix in common
    )


def _kept(matrix: Matrix, before: Matrix) -> Callable[[], Tensor]:
    theirs = {tensor.data_ptr() for tensor in before.parameters()} - {0}
    if not theirs & {tensor.data_ptr() for tensor in matrix.parameters()}:
        return before.read
    copy = before.read().detach().clone()
    return lambda: copy


def _difference(read: Callable[[], Tensor], read_before: Callable[[], Tensor]) -> Tensor:
    now, before = read().detach(), read_before().detach()
    if now.shape != before.shape:
        shapes = f"{tuple(now.shape)} here and {tuple(before.shape)} in the reference"
        raise UnreadableError("skipped", f"of shape {shapes}")
    dtype = torch.promote_types(torch.promote_types(now.dtype, before.dtype), torch.float32)
    moved = now.to(dtype) - before.to(now.device, dtype)
    if not bool(moved.any()):
        raise UnreadableError("skipped", "equal to the reference")
    return moved
