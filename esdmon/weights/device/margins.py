"""Compute the scales of rows and columns of tensors on their device; `esdmon.spectrum.margins` does so for arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum import margins as arrays
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.margins import (
    PASSES,
    SETTLED,
    TINY,
    Array,
    Bools,
    Sides,
    are_heavy_alone,
    as_scales,
    kurtosis_of,
    sample_steps,
)
from esdmon.spectrum.scales import Scales
from esdmon.weights.device.blocks import large_blocks, widened


@final
@dataclass(frozen=True, slots=True)
class Margins(Sides):
    """Mean squares, or scales, of the rows and columns of each slice, in float64 on the weight's device."""

    rows: Tensor
    """(slices, rows)."""
    columns: Tensor
    """(slices, columns)."""

    def totals(self) -> tuple[Floats, Floats]:
        """Return the sums of the rows and columns over all slices."""
        return _numbers(self.rows.sum(dim=0)), _numbers(self.columns.sum(dim=0))

    def by_slice(self) -> Floats:
        """Return the sum over the rows of each slice."""
        return _numbers(self.rows.sum(dim=1))

    def keep(self, rows: Bools, columns: Bools) -> "Margins":
        """Return the margins of some rows and columns."""
        return Margins(
            self.rows[:, torch.from_numpy(rows)] * (columns.size / max(1, int(columns.sum()))),
            self.columns[:, torch.from_numpy(columns)] * (rows.size / max(1, int(rows.sum()))),
        )


@final
class _Widened:
    """A stack of 16-bit numbers on the CPU as an array of float32: slices of it are converted."""

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack
        self.shape = tuple(stack.shape)
        self.size = stack.numel()
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: Any) -> Array:
        array: Array = self._stack[key].float().numpy()
        return array


def as_array(stack: Tensor) -> Array | None:
    """Return a stack on the CPU as an array of float32 or float64, without a copy of it; None on other devices.

    numpy passes over it in half of the time, and in one thread: those of torch wait for threads of the BLAS that spin.
    """
    if stack.device.type != "cpu":
        return None
    if stack.dtype in (torch.float32, torch.float64):
        array: Array = stack.numpy()
        return array
    return cast("Array", _Widened(stack))


def _as_arrays(margins: Margins) -> arrays.Margins:
    return arrays.Margins(_numbers(margins.rows), _numbers(margins.columns))


def scales_of(stack: Tensor, margins: Margins) -> Scales:
    """Return the scales of a stack without dead rows and columns, with N >= M."""
    array = as_array(stack)
    if array is not None:
        return arrays.scales_of(array, _as_arrays(margins))
    squares, columns_first = _squared(stack), margins.columns_first()
    measured, margins = margins, _refined(squares, margins, columns_first=columns_first)
    if not _is_near(measured, margins):  # a single large row raises the scales of its columns, which lowers its own
        margins = _refined(squares, margins, columns_first=columns_first)
    rows, columns = _numbers(margins.rows), _numbers(margins.columns)
    elements = _kurtosis(stack, margins, columns_first=columns_first)
    return as_scales(rows, columns, elements, partial(_are_heavy_alone, stack, measured))


def _squared(stack: Tensor) -> Iterable[Tensor]:
    """Return the squares in blocks of rows: computed once if there is one block, else at each pass."""
    squares = _Squares(large_blocks(stack))
    return squares if len(squares.parts) > 1 else list(squares)


@dataclass(frozen=True, slots=True)
class _Squares:
    parts: tuple[Tensor, ...]

    def __iter__(self) -> Iterator[Tensor]:
        return (widened(part).square() for part in self.parts)


def _refined(squares: Iterable[Tensor], margins: Margins, *, columns_first: bool) -> Margins:
    """Return scales refined from an earlier estimate."""
    if columns_first:
        columns = _columns(squares, margins.rows)
        return Margins(_rows(squares, columns), columns)
    rows = _rows(squares, margins.columns)
    return Margins(rows, _columns(squares, rows))


def _rows(squares: Iterable[Tensor], columns: Tensor) -> Tensor:
    """Return the mean over the columns of W_ij²/b_j for each row.

    No matrix product is used, since a precision switch may round its factors; the same holds for `_columns`.
    """
    weights = _inverse(columns)[:, None, :]
    sums = [(part * weights.to(part.dtype)).sum(dim=2) for part in squares]
    return torch.cat(sums, dim=1).double() / columns.shape[1]


def _columns(squares: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Return the mean over the rows of W_ij²/a_i for each column."""
    weights, start, sums = _inverse(rows)[:, :, None], 0, []
    for part in squares:
        stop = start + part.shape[1]
        sums.append((part * weights[:, start:stop].to(part.dtype)).sum(dim=1).double())
        start = stop
    return torch.stack(sums).sum(dim=0) / rows.shape[1]


def _is_near(one: Margins, other: Margins) -> bool:
    """Return whether two estimates of the scales are proportional on both sides, up to 5 %."""
    ratios = (other.rows * _inverse(one.rows), other.columns * _inverse(one.columns))
    return all(bool((ratio.amax(dim=1) < (1 + SETTLED) * ratio.amin(dim=1)).all()) for ratio in ratios)


def _inverse(scales: Tensor) -> Tensor:
    """Return 1/scale. Zeros, which a single slice may have, are replaced by a tiny scale, or by 1 if all are zero."""
    least = scales.mean(dim=1, keepdim=True) * TINY
    return torch.maximum(scales, torch.where(least > 0, least, 1)).reciprocal()


def _kurtosis(stack: Tensor, margins: Margins, *, columns_first: bool) -> tuple[Floats, Floats]:
    """Return `kurtosis_of` of a sample."""
    by_row, by_column = sample_steps(stack.numel(), columns_first=columns_first)
    a, b = _inverse(margins.rows)[:, ::by_row], _inverse(margins.columns)[:, ::by_column]
    return kurtosis_of(_numbers(stack[:, ::by_row, ::by_column]), _numbers(a), _numbers(b))


def _are_heavy_alone(stack: Tensor, margins: Margins) -> Bools:
    """Return for each slice whether its largest elements are large alone; see `esdmon.spectrum.margins`."""
    slices, n_rows, n_columns = stack.shape
    by_row, largest, by_column = [], np.zeros(slices), np.zeros((slices, n_columns))
    for part in large_blocks(stack):
        magnitudes = widened(part).abs()
        by_row.append(_numbers(magnitudes.sum(dim=2)) / n_columns)
        by_column += _numbers(magnitudes.sum(dim=1)) / n_rows
        largest = np.maximum(largest, _numbers(magnitudes.amax(dim=(1, 2))))
    means = arrays.Margins(np.concatenate(by_row, axis=1), by_column)
    return are_heavy_alone(means, largest, _numbers(margins.rows.mean(dim=1)))


def _numbers(tensor: Tensor) -> Floats:
    numbers: Floats = tensor.cpu().double().numpy()
    return numbers


def equalise(stack: Tensor, margins: Margins) -> Tensor:
    """Return the stack with its rows and columns scaled to equal mean squares, in each slice (Sinkhorn and Knopp)."""
    array = as_array(stack)
    if array is not None:
        return torch.from_numpy(arrays.equalise(array[:], _as_arrays(margins)))  # 16 bits are widened here
    squares = _squared(stack)
    columns_first = margins.columns_first()
    for _ in range(PASSES):
        margins = _refined(squares, margins, columns_first=columns_first)
    scaled = stack * (_inverse(margins.rows)[:, :, None] * _inverse(margins.columns)[:, None, :]).sqrt()
    size = scaled.square().mean(dim=(1, 2), keepdim=True).sqrt()
    scaled /= torch.where(size > 0, size, 1)
    return scaled.to(torch.promote_types(stack.dtype, torch.float32))
