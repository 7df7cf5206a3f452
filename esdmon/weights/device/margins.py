"""Measure the scales of the rows and columns of a stack of matrices, find dead ones, and equalise the others.

Where E W_ij² = a_i·b_j, a row that is much larger than the others dominates the mean square of every column. So the
scales are measured after dividing by those of the other side: a_i = mean_j W_ij²/b_j and b_j = mean_i W_ij²/a_i, from
the mean squares on, and once more where that changes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.scales import HEAVY_KURTOSIS, Scales

Bools = NDArray[np.bool_]

_DEAD = 1e-3  # of the median rms: dead units of published networks have 1e-7 to 1e-40 of it. Our choice.
_WEAK = 0.1  # of the median rms: rows of noise scatter by (2M)^−½, 4 % for M = 256. Our choice.
_SAMPLED = 1 << 16  # elements that the kurtosis is estimated from; our choice
# Standard deviations of the ratio: of independent elements with exponents from 1 to infinity 1 % have more.
_ALIKE = 3.0
_SETTLED = 0.05  # a change of scales after which the next one is below .005 (on 14 published networks); our choice
_TINY = 1e-12  # of the mean scale: less is what is left of a unit that is dead in one slice only
_BLOCK = 1 << 15  # elements: torch computes fewer in one thread
_PASSES = 12  # over rows and columns: the mean squares are then equal to a few parts in a thousand; our choice


@dataclass(frozen=True, slots=True)
class Margins:
    """Mean squares, or scales, of the rows and columns of each slice, in float64 on the weight's device."""

    rows: Tensor
    """(slices, rows)."""
    columns: Tensor
    """(slices, columns)."""

    def alive(self) -> tuple[Bools, Bools]:
        """Return masks of the rows and columns whose rms over all slices is at least 1e-3 of the median of their side.

        The median is that of those that are not exactly zero. Where most have decayed, none is left out: then the rank
        of the layer has collapsed.
        """
        return ~_is_below(_DEAD, self.rows), ~_is_below(_DEAD, self.columns)

    def weak(self) -> tuple[int, int]:
        """Return the numbers of rows and columns whose rms over all slices is below a tenth of the median's."""
        rows, columns = (int(np.sum(_is_below(_WEAK, side))) for side in (self.rows, self.columns))
        return rows, columns

    def keep(self, rows: Bools, columns: Bools) -> "Margins":
        """Return the margins of some rows and columns; what the others add to a sum of squares is below 1e-6 of it."""
        return Margins(
            self.rows[:, torch.from_numpy(rows)] * (columns.size / max(1, int(columns.sum()))),
            self.columns[:, torch.from_numpy(columns)] * (rows.size / max(1, int(rows.sum()))),
        )


def small_blocks(stack: Tensor) -> tuple[Tensor, ...]:
    """Split a stack into blocks of rows that stay in the cache, and that torch computes in one thread.

    Its threads would wait for those of the BLAS that solves, which spin for a while after each call: on two cores a
    pass over a MB took 2 ms then, and 0.1 ms in one thread.
    """
    slices, _, columns = stack.shape
    return torch.split(stack, max(1, (_BLOCK - 1) // (slices * columns)), dim=1)


def scales_of(stack: Tensor, margins: Margins) -> Scales:
    """Return the scales of a stack without dead rows and columns, with N >= M."""
    squares = _squared(stack)
    measured, margins = margins, _refined(squares, margins)
    if not _is_near(measured, margins):  # a single large row still lowers its own scale by that of its columns
        margins = _refined(squares, margins)
    rows, columns = _numbers(margins.rows), _numbers(margins.columns)
    kurtosis = _kurtosis(stack, margins)
    if (kurtosis > HEAVY_KURTOSIS).any():
        alike = (kurtosis > HEAVY_KURTOSIS) & _are_heavy_alone(stack, measured)
        rows, columns = (np.where(alike[:, None], 1.0, side) for side in (rows, columns))
    return Scales(rows, columns, kurtosis) if rows.shape[1] >= columns.shape[1] else Scales(columns, rows, kurtosis)


def _squared(stack: Tensor) -> Iterable[Tensor]:
    """Return the squares in blocks of rows: computed once if there is one block, else at each pass."""
    squares = _Squares(small_blocks(stack), torch.promote_types(stack.dtype, torch.float32))
    return squares if len(squares.parts) > 1 else list(squares)


@dataclass(frozen=True, slots=True)
class _Squares:
    parts: tuple[Tensor, ...]
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Tensor]:
        return (part.to(self.dtype).square() for part in self.parts)


def _refined(squares: Iterable[Tensor], margins: Margins) -> Margins:
    """Return scales, each side up to a factor, from an earlier estimate."""
    by_row, by_column = [], torch.zeros_like(margins.columns)
    weights = _inverse(margins.columns)
    for part in squares:
        rows = (weights.to(part.dtype)[:, None, :] @ part.mT)[:, 0]  # of batches, sooner than the matrix times a column
        by_row.append(rows)
        by_column += (_inverse(rows)[:, None, :] @ part)[:, 0]
    return Margins(torch.cat(by_row, dim=1).double(), by_column)


def _is_near(one: Margins, other: Margins) -> bool:
    """Return whether the scales of both sides differ by a factor only, up to 5 %."""
    ratios = (other.rows * _inverse(one.rows), other.columns * _inverse(one.columns))
    return all(bool((ratio.amax(dim=1) < (1 + _SETTLED) * ratio.amin(dim=1)).all()) for ratio in ratios)


def _inverse(scales: Tensor) -> Tensor:
    """Return 1/scale; one slice may have a zero, and then a tiny scale is taken in its place."""
    return torch.maximum(scales, scales.mean(dim=1, keepdim=True) * _TINY).reciprocal()


def _kurtosis(stack: Tensor, margins: Margins) -> Floats:
    """Return E y²/(E y)² of the squares divided by the scales of their row and column, from evenly spaced rows."""
    slices, n_rows, n_columns = stack.shape
    step = max(1, -(-slices * n_rows * n_columns // _SAMPLED))
    y = stack[:, ::step].cpu().double().numpy() ** 2
    a = _inverse(margins.rows)[:, ::step].cpu().numpy()
    b = _inverse(margins.columns).cpu().numpy()
    first = np.einsum("si,si->s", a, np.einsum("sij,sj->si", y, b))
    second = np.einsum("si,si->s", a**2, np.einsum("sij,sj->si", y**2, b**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis: Floats = np.nan_to_num(second / first**2 * y[0].size, nan=3.0)
    return kurtosis


def _are_heavy_alone(stack: Tensor, margins: Margins) -> Bools:
    """Return for each slice whether single elements make spikes, and rows and columns differ by such elements only.

    An element w makes a spike where |w| > (NM)^¼·σ. With the elements in random order the mean |W| of a row has the
    variance v/M, where v is that of |W| over all elements, whatever their law, and that of a column v/N. A single
    element as large as a whole row makes mean squares differ as much as a large row does, but not the ratio of the two
    variances: that is 1, with a standard deviation of √(2/M) at most, M the shorter side.

    Args:
        stack: (slices, rows, columns).
        margins: Mean squares of its rows and columns.
    """
    slices, n_rows, n_columns = stack.shape
    by_row, largest, by_column = [], np.zeros(slices), np.zeros((slices, n_columns))
    for part in small_blocks(stack):
        magnitudes = part.to(torch.promote_types(part.dtype, torch.float32)).abs()
        by_row.append(_numbers(magnitudes.sum(dim=2)) / n_columns)
        by_column += _numbers(magnitudes.sum(dim=1)) / n_rows
        largest = np.maximum(largest, _numbers(magnitudes.amax(dim=(1, 2))))
    rows, squares = np.concatenate(by_row, axis=1), _numbers(margins.rows.mean(dim=1))
    variance = squares - rows.mean(axis=1) ** 2
    most = (1 + _ALIKE * (2 / min(n_rows, n_columns)) ** 0.5) * variance
    alike = (rows.var(axis=1) * n_columns <= most) & (by_column.var(axis=1) * n_rows <= most)
    alone: Bools = alike & (largest**2 > squares * (n_rows * n_columns) ** 0.5)
    return alone


def _numbers(tensor: Tensor) -> Floats:
    numbers: Floats = tensor.cpu().double().numpy()
    return numbers


def equalise(stack: Tensor, margins: Margins) -> Tensor:
    """Return the stack with its rows and columns scaled to equal mean squares, in each slice (Sinkhorn and Knopp)."""
    squares = _squared(stack)
    for _ in range(_PASSES):
        margins = _refined(squares, margins)
    scaled = stack * (_inverse(margins.rows)[:, :, None] * _inverse(margins.columns)[:, None, :]).sqrt()
    scaled /= scaled.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return scaled.to(torch.promote_types(stack.dtype, torch.float32))


def _is_below(share: float, squares: Tensor) -> Bools:
    """Return a mask of rows or columns whose rms is zero, or below a share of the median of those that are not zero."""
    total = squares.sum(dim=0).cpu().numpy()
    if total.min() >= share**2 * total.max() > 0:  # the usual case: then none is below that share of anything
        return np.zeros(total.size, dtype=bool)
    positive = total[total > 0]
    mask: Bools = total < share**2 * np.median(positive) if positive.size else total <= 0
    return mask
