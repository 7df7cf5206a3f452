"""W − W₀: what training has changed, against a state of the same model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.weights.device.precision import with_double
from esdmon.weights.device.update_ratio import elements, sample, share, some_of_sample
from esdmon.weights.matrix import Matrix, UnreadableError, refused, why_not


@final
class Before:
    """W₀ of one matrix: read for each spectrum, and once for all looks at how far the weight has moved.

    Args:
        read: gives the whole of it.
        size: elements to remember.
    """

    def __init__(self, read: Callable[[], Tensor], size: int) -> None:
        self.read = read
        self._size = size
        self._shape: torch.Size | None = None
        self._sample: Tensor | None = None

    def sample(self, matrix: Matrix, size: int, like: Tensor) -> Tensor:
        """Return its elements at the places where the matrix is sampled, close to those of the matrix itself.

        Raises:
            UnreadableError: where the matrix has another shape.
        """
        shape = (matrix.outline or matrix.read)().shape
        if self._shape is None or (self._shape == shape and (self._sample is None or size > self._size)):
            weight = self.read().detach()
            self._shape, self._size = weight.shape, max(size, self._size)
            self._sample = elements(matrix, weight, self._size).clone() if weight.shape == shape else None
        _check_shapes(shape, self._shape)
        if self._sample is None:  # for the type checker
            raise UnreadableError("skipped", "the reference is not read yet")
        self._sample = self._sample.to(with_double(like).device)
        return some_of_sample(self._sample, math.prod(matrix.stack_shape()), size)


def differences(
    chosen: Sequence[Matrix], reference: Sequence[Matrix], kept: dict[str, Before] | None = None
) -> tuple[Matrix, ...]:
    """Each matrix that the reference has too as its difference from there.

    What shares memory with the model, as a `state_dict()` does, is copied first: it would move along.

    Args:
        chosen: the matrices to read.
        reference: those of the reference.
        kept: W₀ of each as it was found at an earlier call, which goes before; new ones are added.

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
    size = share(len(common))
    return tuple(_from(matrix, before[matrix.name], kept, size) for matrix in common)


def _from(matrix: Matrix, before: Matrix, kept: dict[str, Before], size: int) -> Matrix:
    if matrix.unreadable:
        return matrix
    if matrix.name not in kept:
        if before.unreadable:
            return refused(matrix, f"the reference is {before.unreadable}")
        try:
            kept[matrix.name] = Before(_kept(matrix, before), size)
        except Exception as error:  # noqa: BLE001 -- a weight of a strange kind
            return refused(matrix, f"the reference cannot be read: {why_not(error)}")
    return replace(
        matrix,
        read=partial(_difference, matrix.read, kept[matrix.name].read),
        made_of=matrix.parameters,
        outline=matrix.outline or matrix.read,
        probe=partial(_moved, matrix, kept[matrix.name]) if matrix.probe is None else None,
        view="difference",
    )


def _kept(matrix: Matrix, before: Matrix) -> Callable[[], Tensor]:
    theirs = {tensor.data_ptr() for tensor in before.parameters()} - {0}
    if not theirs & {tensor.data_ptr() for tensor in matrix.parameters()}:
        return before.read
    copy = before.read().detach().clone()
    return lambda: copy


def _moved(matrix: Matrix, before: Before, size: int) -> Tensor:
    """A sample of W − W₀."""
    now = sample(matrix, size)
    return _subtracted(now, before.sample(matrix, size, now))


def _difference(read: Callable[[], Tensor], read_before: Callable[[], Tensor]) -> Tensor:
    now, before = read().detach(), read_before().detach()
    _check_shapes(now.shape, before.shape)
    return _subtracted(now, before)


def _check_shapes(now: torch.Size, before: torch.Size) -> None:
    if now != before:
        shapes = f"{tuple(now)} here and {tuple(before)} in the reference"
        raise UnreadableError("skipped", f"of shape {shapes}")


def _subtracted(now: Tensor, before: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(now.dtype, before.dtype), torch.float32)
    now = with_double(now) if dtype == torch.float64 else now
    moved = now.to(dtype) - before.to(now.device, dtype)
    if not bool(moved.any()):
        raise UnreadableError("skipped", "equal to the reference")
    return moved
