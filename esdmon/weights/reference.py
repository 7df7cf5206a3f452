"""Read W − W₀, the difference of each weight from a reference state of the same model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from esdmon.errors import InputError, UnreadableError
from esdmon.records import EQUAL
from esdmon.spectrum.spectrum import PRODUCTS
from esdmon.weights.device.precision import on_float64_device
from esdmon.weights.device.sample import reduce_sample, sample_matrix, sample_size, sample_value
from esdmon.weights.matrix import Matrix, mark_unreadable, reason_for


@final
class ReferenceWeight:
    """W₀ of one matrix. All of it is read for each spectrum; update ratios use a sample that is read once.

    Args:
        read: returns W₀.
        least: number of elements to sample, if no more are requested.
    """

    def __init__(self, read: Callable[[], Tensor], least: int) -> None:
        self.read = read
        self._least = least
        self._shape: torch.Size | None = None
        self._sample = torch.empty(0)
        self._size = 0
        """Number of elements that were requested for `_sample`."""

    def sample(self, matrix: Matrix, size: int, like: Tensor) -> Tensor:
        """Return up to `size` elements of W₀ at the places where `matrix` is sampled, on the device of `like`.

        Raises:
            UnreadableError: if the matrix has another shape.
        """
        shape = (matrix.outline or matrix.read)().shape
        if self._shape is None or (self._shape == shape and size > self._size):
            weight = self.read().detach()
            self._shape = weight.shape
            if weight.shape == shape:
                self._size = max(size, self._least)
                self._sample = sample_value(matrix, weight, self._size).clone()
        _check_shapes(shape, self._shape)
        self._sample = self._sample.to(on_float64_device(like).device)
        return reduce_sample(self._sample, matrix.size().n_elements, size)


def differences(
    chosen: Sequence[Matrix], reference: Sequence[Matrix], kept: dict[str, ReferenceWeight] | None = None
) -> tuple[Matrix, ...]:
    """Return a handle on W − W₀ for each matrix that the reference has as well.

    A reference that shares memory with the model, as `model.state_dict()` does, is copied first: it would change with
    the model.

    Args:
        chosen: the matrices to read.
        reference: the matrices of the reference.
        kept: W₀ from earlier calls by name, which is used again; new ones are added.

    Raises:
        InputError: if model and reference have no matrix in common.
    """
    before = {matrix.name: matrix for matrix in reference}
    common = tuple(matrix for matrix in chosen if matrix.name in before)
    if not common:
        raise InputError(
            f"reference= has none of the model's matrices: it has {', '.join(list(before)[:4]) or 'none'}, "
            f"the model {', '.join(matrix.name for matrix in chosen[:4])}"
        )
    kept = {} if kept is None else kept
    size = sample_size(len(common))
    return tuple(_difference_of(matrix, before[matrix.name], kept, size) for matrix in common)


def _difference_of(matrix: Matrix, before: Matrix, kept: dict[str, ReferenceWeight], size: int) -> Matrix:
    if matrix.unreadable:
        return matrix
    if matrix.view in PRODUCTS:
        return mark_unreadable(matrix, "a product of two weights is not read against a reference")
    if matrix.name not in kept:
        if before.unreadable:
            return mark_unreadable(matrix, f"the reference cannot be read: {before.unreadable}")
        try:
            kept[matrix.name] = ReferenceWeight(_reader_of(before, matrix), size)
        except Exception as error:  # noqa: BLE001 -- a weight of an unusual kind
            return mark_unreadable(matrix, f"the reference cannot be read: {reason_for(error)}")
    reference = kept[matrix.name]
    return replace(
        matrix,
        read=partial(_read_difference, matrix.read, reference.read),
        made_of=matrix.parameters,
        outline=matrix.outline or matrix.read,
        probe=partial(_sample_difference, matrix, reference) if matrix.probe is None else None,
        view="difference",
        reference=reference.read,
    )


def _reader_of(before: Matrix, matrix: Matrix) -> Callable[[], Tensor]:
    """Return a reader of W₀: its handle, or a copy if W₀ shares memory with the model's matrix."""
    addresses = {tensor.data_ptr() for tensor in before.parameters()} - {0}
    if not addresses & {tensor.data_ptr() for tensor in matrix.parameters()}:
        return before.read
    copy = before.read().detach().clone()
    return lambda: copy


def _sample_difference(matrix: Matrix, before: ReferenceWeight, size: int) -> Tensor:
    now = sample_matrix(matrix, size)
    return subtract(now, before.sample(matrix, size, now))


def _read_difference(read: Callable[[], Tensor], read_before: Callable[[], Tensor]) -> Tensor:
    now, before = read().detach(), read_before().detach()
    return subtract(now, before)


def subtract(now: Tensor, before: Tensor, *, same: str = EQUAL, other: str = "in the reference") -> Tensor:
    """Return now − before, in float32 or better.

    Args:
        now: a weight.
        before: the weight as it was.
        same: the reason to give where they are equal.
        other: where `before` is from, for the reason where their shapes differ, or it is not finite.

    Raises:
        UnreadableError: if they are equal, of different shapes, or `before` is not finite.
    """
    _check_shapes(now.shape, before.shape, other)
    dtype = torch.promote_types(torch.promote_types(now.dtype, before.dtype), torch.float32)
    now = on_float64_device(now) if dtype == torch.float64 else now
    before = before.to(now.device, dtype)
    finite = before.isfinite()
    if not bool(finite.all()):
        count = before.numel() - int(finite.sum())
        raise UnreadableError("nonfinite", f"{count} of {before.numel()} elements are NaN or infinite {other}")
    moved = now.to(dtype) - before
    if not bool(moved.any()):
        raise UnreadableError("skipped", same)
    return moved


def _check_shapes(now: torch.Size, before: torch.Size, other: str = "in the reference") -> None:
    if now != before:
        raise UnreadableError("skipped", f"its shape is {tuple(now)}, but {tuple(before)} {other}")
