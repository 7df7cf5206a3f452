"""Measure the scales of the rows and columns of a stack of matrices, find dead ones, and equalise the others.

Where E W_ij² = a_i·b_j, a row that is much larger than the others dominates the mean square of every column. So the
scales of one side are measured after dividing by the scales of the other: a_i = mean_j W_ij²/b_j and b_j = mean_i
W_ij²/a_i, starting from the mean squares, and repeated once if the scales change. The side whose mean squares differ
less is computed first, since large values on the other side have disturbed it. This makes the scales of W and of its
transpose the same.

This module is for numpy arrays; `esdmon.weights.device.margins` does the same for tensors on their device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.scales import HEAVY_KURTOSIS, Scales

Array: TypeAlias = NDArray[np.floating[Any]]
Bools: TypeAlias = NDArray[np.bool_]

DEAD = 1e-3
"""Share of the median rms below which a row or column is dead; dead units of published networks have 1e-7 to 1e-40 of
it. Our choice.
"""
WEAK = 0.1
"""Share of the median rms below which a row or column is weak; rows of noise scatter by (2M)^−½, 4 % for M = 256. Our
choice.
"""
SAMPLED = 1 << 16
"""Number of elements from which the kurtosis is estimated, in evenly spaced rows or columns; our choice."""
ALIKE = 3.0
"""Limit of the ratio of variances, in standard deviations above 1. It is exceeded in 1 % of matrices of independent
elements with exponents from 1 to infinity.
"""
SETTLED = 0.05
"""Relative change of scales up to which the next one would be below .005 (on 14 published networks); our choice."""
TINY = 1e-12
"""Smallest scale, as a share of the mean scale: smaller ones belong to units that are dead in one slice only."""
PASSES = 12
"""Passes over rows and columns, which make the mean squares equal to a few parts in a thousand; our choice."""
_BLOCK = 1 << 17  # elements of a block of rows, which stay in the cache: 512 KB in float32


class Sides(ABC):
    """Mean squares of the rows and columns of each slice, wherever they are stored."""

    __slots__ = ()

    @abstractmethod
    def totals(self) -> tuple[Floats, Floats]:
        """Return the sums of the rows and columns over all slices."""

    @abstractmethod
    def by_slice(self) -> Floats:
        """Return the sum over the rows of each slice."""

    @abstractmethod
    def keep(self, rows: Bools, columns: Bools) -> Self:
        """Return the margins of some rows and columns; the others contribute less than 1e-6 to a sum of squares."""

    def alive_slices(self, shape: tuple[int, ...]) -> Bools:
        """Return a mask of the slices that are not dead, by the rule of `alive`.

        The kernel positions under a mask are zero, and so are all but one of a kernel that begins as a delta. Slices
        with one eigenvalue are the channels of a depthwise convolution, of which none is dropped. A single slice is not
        compared: its sum would have to be fetched from the device for each linear layer.
        """
        slices, *sides = shape
        return ~is_below(DEAD, self.by_slice()) if slices > 1 and min(sides) > 1 else np.ones(slices, dtype=bool)

    def alive(self) -> tuple[Bools, Bools]:
        """Return masks of the rows and columns whose rms over all slices is at least 1e-3 of the median of their side.

        The median is over the rows or columns that are not exactly zero. If most of them have decayed, none is dropped:
        then the rank of the layer has collapsed.
        """
        rows, columns = self.totals()
        return ~is_below(DEAD, rows), ~is_below(DEAD, columns)

    def columns_first(self) -> bool:
        """Return whether the columns differ less than the rows, by the standard deviation of their logarithms."""
        rows, columns = (float(np.log(side[side > 0]).std()) if side.any() else 0.0 for side in self.totals())
        return columns < rows

    def weak(self) -> tuple[int, int]:
        """Return the numbers of rows and columns with an rms below a tenth of the median rms of their side."""
        rows, columns = self.totals()
        return int(np.sum(is_below(WEAK, rows))), int(np.sum(is_below(WEAK, columns)))


@final
@dataclass(frozen=True, slots=True)
class Margins(Sides):
    """Mean squares, or scales, of the rows and columns of each slice, in float64."""

    rows: Floats
    """(slices, rows)."""
    columns: Floats
    """(slices, columns)."""

    def totals(self) -> tuple[Floats, Floats]:
        """Return the sums of the rows and columns over all slices."""
        return self.rows.sum(axis=0), self.columns.sum(axis=0)

    def by_slice(self) -> Floats:
        """Return the sum over the rows of each slice."""
        return self.rows.sum(axis=1)

    def keep(self, rows: Bools, columns: Bools) -> Self:
        """Return the margins of some rows and columns."""
        return Margins(
            self.rows[:, rows] * (columns.size / max(1, int(columns.sum()))),
            self.columns[:, columns] * (rows.size / max(1, int(rows.sum()))),
        )


def is_below(share: float, squares: Floats) -> Bools:
    """Return a mask of rows or columns whose rms is zero, or below a share of the median of those that are not zero.

    Args:
        share: share of the median rms.
        squares: the sum of squares of each row or column.
    """
    if squares.min() >= share**2 * squares.max() > 0:  # the usual case: then none is below that share of the median
        return np.zeros(squares.size, dtype=bool)
    positive = squares[squares > 0]
    return squares < share**2 * np.median(positive) if positive.size else squares <= 0


def small_blocks(stack: Array) -> Iterator[Array]:
    """Yield blocks of rows that stay in the cache."""
    _, n_rows, _ = stack.shape
    count = _rows_of_block(stack)
    return (stack[:, start : start + count] for start in range(0, n_rows, count))


def gathered_blocks(stack: Array) -> Iterator[Array]:
    """Yield `small_blocks`, with rows that are contiguous: copies of scattered ones, each valid until the next.

    The slices of a convolution are scattered: neither the elements of a row nor those of a column are neighbours.
    """
    is_array = isinstance(stack, np.ndarray)  # and not a stack of 16 bits, which converts its blocks
    if not is_array or stack.itemsize in stack.strides[1:]:
        yield from small_blocks(stack)
        return
    # With one more row numpy sums slice by slice, in the same order as in the blocks of a contiguous stack.
    buffer = np.empty((len(stack), _rows_of_block(stack) + 1, stack.shape[2]), stack.dtype)
    for block in small_blocks(stack):
        gathered = buffer[:, : block.shape[1]]
        gathered[:] = block
        yield gathered


def _rows_of_block(stack: Array) -> int:
    slices, _, columns = stack.shape
    return max(1, (_BLOCK - 1) // (slices * columns))


def scales_of(stack: Array, margins: Margins) -> Scales:
    """Return the scales of a stack without dead rows and columns, with N >= M."""
    columns_first = margins.columns_first()
    measured, margins = margins, _refined(stack, margins, columns_first=columns_first)
    if not _is_near(measured, margins):  # a single large row raises the scales of its columns, which lowers its own
        margins = _refined(stack, margins, columns_first=columns_first)
    by_row, by_column = sample_steps(stack.size, columns_first=columns_first)
    elements = kurtosis_of(
        stack[:, ::by_row, ::by_column],
        _inverse(margins.rows)[:, ::by_row],
        _inverse(margins.columns)[:, ::by_column],
    )
    return as_scales(margins.rows, margins.columns, elements, partial(_are_heavy_alone, stack, measured))


def as_scales(rows: Floats, columns: Floats, elements: tuple[Floats, Floats], are_alone: Callable[[], Bools]) -> Scales:
    """Return scales with those of the longer side first.

    Args:
        rows: scales of the rows, (slices, rows).
        columns: scales of the columns, (slices, columns).
        elements: the kurtosis of each slice, and its share of elements that are not zero; see `kurtosis_of`.
        are_alone: returns the result of `are_heavy_alone`; slices for which it is True get equal scales.
    """
    kurtosis, filled = elements
    if (kurtosis > HEAVY_KURTOSIS).any():
        alike = (kurtosis > HEAVY_KURTOSIS) & are_alone()
        rows, columns = (np.where(alike[:, None], 1.0, side) for side in (rows, columns))
    longer, shorter = (rows, columns) if rows.shape[1] >= columns.shape[1] else (columns, rows)
    return Scales(longer, shorter, kurtosis, filled)


def are_heavy_alone(means: Margins, largest: Floats, squares: Floats) -> Bools:
    """Return for each slice whether single elements cause spikes, and rows and columns differ only by such elements.

    An element w causes a spike if |w| > (NM)^¼·σ. If the elements are in random order, the mean |W| of a row has the
    variance v/M, and that of a column v/N, where v is the variance of |W| over all elements; this holds for any law of
    the elements. A single element as large as a whole row has the same effect on the mean squares as a large row, but
    none on the ratio of measured to expected variance: this ratio is 1, with a standard deviation of at most √(2/M), M
    the shorter side.

    Args:
        means: mean |W| of rows and columns.
        largest: largest |W| of each slice, (slices,).
        squares: mean square of the elements of each slice, (slices,).
    """
    rows, columns = means.rows, means.columns
    n_rows, n_columns = rows.shape[1], columns.shape[1]
    variance = squares - rows.mean(axis=1) ** 2
    most = (1 + ALIKE * (2 / min(n_rows, n_columns)) ** 0.5) * variance
    alike = (rows.var(axis=1) * n_columns <= most) & (columns.var(axis=1) * n_rows <= most)
    return alike & (largest**2 > squares * (n_rows * n_columns) ** 0.5)


def sample_steps(size: int, *, columns_first: bool) -> tuple[int, int]:
    """Return the distances between the rows, and between the columns, from which the kurtosis is estimated.

    Args:
        size: number of elements.
        columns_first: value of `Sides.columns_first`; it makes the samples of W and of its transpose the same.
    """
    step = max(1, -(-size // SAMPLED))
    return (1, step) if columns_first else (step, 1)


def kurtosis_of(sample: Array, a: Array, b: Array) -> tuple[Floats, Floats]:
    """Return E y²/(E y)² of the squares of some rows and columns divided by their scales, and the share of y > 0.

    The share is counted only if the first value is large, and is 1 otherwise.

    Args:
        sample: (slices, rows, columns).
        a: inverse scale of each row.
        b: inverse scale of each column.
    """
    y = sample.astype(np.float64, order="C") ** 2
    first = np.einsum("si,si->s", a, np.einsum("sij,sj->si", y, b))
    second = np.einsum("si,si->s", a**2, np.einsum("sij,sj->si", y**2, b**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis: Floats = np.nan_to_num(second / first**2 * y[0].size, nan=3.0)
    filled = np.ones(len(y))
    if (kurtosis > HEAVY_KURTOSIS).any():
        filled = np.maximum(np.count_nonzero(y, axis=(1, 2)), 1) / y[0].size  # a slice may be zero
    return kurtosis, filled


def equalise(stack: Array, margins: Margins) -> Array:
    """Return the stack with its rows and columns scaled to equal mean squares, in each slice (Sinkhorn and Knopp)."""
    columns_first = margins.columns_first()
    for _ in range(PASSES):
        margins = _refined(stack, margins, columns_first=columns_first)
    scaled = stack * np.sqrt(_inverse(margins.rows)[:, :, None] * _inverse(margins.columns)[:, None, :])
    size = np.sqrt(np.square(scaled).mean(axis=(1, 2), keepdims=True))
    scaled /= np.where(size > 0, size, 1)
    return scaled.astype(stack.dtype)


def _are_heavy_alone(stack: Array, margins: Margins) -> Bools:
    slices, n_rows, n_columns = stack.shape
    by_row, largest, by_column = [], np.zeros(slices), np.zeros((slices, n_columns))
    for part in small_blocks(stack):
        magnitudes = np.abs(part, order="C")
        by_row.append(magnitudes.mean(axis=2, dtype=np.float64))
        by_column += magnitudes.sum(axis=1, dtype=np.float64) / n_rows
        largest = np.maximum(largest, magnitudes.max(axis=(1, 2)))
    means = Margins(np.concatenate(by_row, axis=1), by_column)
    return are_heavy_alone(means, largest, margins.rows.mean(axis=1))


def _refined(stack: Array, margins: Margins, *, columns_first: bool) -> Margins:
    """Return scales refined from an earlier estimate."""
    if columns_first:
        columns = _columns(stack, margins.rows)
        return Margins(_rows(stack, columns), columns)
    rows = _rows(stack, margins.columns)
    return Margins(rows, _columns(stack, rows))


def _rows(stack: Array, columns: Floats) -> Floats:
    """Return the mean over the columns of W_ij²/b_j for each row."""
    weights = _inverse(columns).astype(stack.dtype)[:, None, :]
    sums = [(weights @ np.square(part, order="C").mT)[:, 0] for part in small_blocks(stack)]
    return np.concatenate(sums, axis=1, dtype=np.float64) / columns.shape[1]


def _columns(stack: Array, rows: Floats) -> Floats:
    """Return the mean over the rows of W_ij²/a_i for each column."""
    weights, start = _inverse(rows).astype(stack.dtype)[:, None, :], 0
    sums: Floats = np.zeros((stack.shape[0], stack.shape[2]))
    for part in small_blocks(stack):
        stop = start + part.shape[1]
        sums += (weights[:, :, start:stop] @ np.square(part, order="C"))[:, 0]
        start = stop
    return sums / rows.shape[1]


def _is_near(one: Margins, other: Margins) -> bool:
    """Return whether two estimates of the scales are proportional on both sides, up to 5 %."""
    ratios = (other.rows * _inverse(one.rows), other.columns * _inverse(one.columns))
    return all(bool((ratio.max(axis=1) < (1 + SETTLED) * ratio.min(axis=1)).all()) for ratio in ratios)


def _inverse(scales: Array) -> Array:
    """Return 1/scale. Zeros, which a single slice may have, are replaced by a tiny scale, or by 1 if all are zero."""
    least = scales.mean(axis=1, keepdims=True) * scales.dtype.type(TINY)
    least[least == 0] = 1
    return 1 / np.maximum(scales, least)
