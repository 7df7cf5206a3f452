"""Measure the scales of the rows and columns of a stack of matrices, find dead ones, and equalise the others.

Where E W_ij² = a_i·b_j, a row that is much larger than the others dominates the mean square of every column. So the
scales are measured after dividing by those of the other side: a_i = mean_j W_ij²/b_j and b_j = mean_i W_ij²/a_i, twice,
from the mean squares on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.scales import Scales
from esdmon.weights.device.solvers import blocks

_DEAD = 1e-3  # of the median rms: dead units of published networks have 1e-7 to 1e-40 of it. Our choice.
_SAMPLED = 1 << 16  # elements that the kurtosis is estimated from; our choice
_TINY = 1e-12  # of the mean scale: less is what is left of a unit that is dead in one slice only
_REFINEMENTS = 2  # after one, a single large row still lowers its own scale by that of the columns it dominates
_PASSES = 12  # over rows and columns: the mean squares are then equal to a few parts in a thousand; our choice


@dataclass(frozen=True, slots=True)
class Margins:
    """Mean squares, or scales, of the rows and columns of each slice, in float64 on the weight's device."""

    rows: Tensor
    """(slices, rows)."""
    columns: Tensor
    """(slices, columns)."""

    def alive(self) -> tuple[Tensor, Tensor]:
        """Return masks of the rows and columns whose rms over all slices is at least 1e-3 of the median of their side.

        The median is that of those that are not exactly zero. Where most have decayed, none is left out: then the rank
        of the layer has collapsed.
        """
        return _alive(self.rows), _alive(self.columns)

    def keep(self, rows: Tensor, columns: Tensor) -> "Margins":
        """Return the margins of some rows and columns; what the others add to a sum of squares is below 1e-6 of it."""
        n_rows, n_columns = self.rows.shape[1], self.columns.shape[1]
        return Margins(
            self.rows[:, rows] * (n_columns / max(1, int(columns.sum()))),
            self.columns[:, columns] * (n_rows / max(1, int(rows.sum()))),
        )


def measure_margins(stack: Tensor) -> Margins:
    """Return the mean squares of rows and columns of a (slices, rows, columns) stack, in blocks of rows."""
    _, n_rows, n_columns = stack.shape
    dtype = torch.promote_types(stack.dtype, torch.float32)
    by_row, by_column = [], torch.zeros(stack.shape[0], n_columns, dtype=torch.float64, device=stack.device)
    for part in blocks(stack):
        squares = part.to(dtype).square()
        by_row.append(squares.sum(dim=2))
        by_column += squares.sum(dim=1)
    return Margins(torch.cat(by_row, dim=1).double() / n_columns, by_column / n_rows)


def scales_of(stack: Tensor, margins: Margins) -> Scales:
    """Return the scales of a stack without dead rows and columns, of mean 1, with N >= M."""
    for _ in range(_REFINEMENTS):
        margins = _refined(stack, margins)
    rows, columns = margins.rows.cpu().numpy(), margins.columns.cpu().numpy()
    kurtosis = _kurtosis(stack, margins)
    return Scales(rows, columns, kurtosis) if rows.shape[1] >= columns.shape[1] else Scales(columns, rows, kurtosis)


def _refined(stack: Tensor, margins: Margins) -> Margins:
    """Return the scales of mean 1, from an earlier estimate."""
    dtype = torch.promote_types(stack.dtype, torch.float32)
    columns = _of_mean_one(margins.columns)
    weights = (1 / columns).to(dtype)
    by_row, by_column = [], torch.zeros_like(columns)
    level = margins.rows.mean(dim=1, keepdim=True)
    for part in blocks(stack):
        squares = part.to(dtype).square()
        rows = (squares @ weights[:, :, None])[..., 0].double() / stack.shape[2] / level
        by_row.append(rows)
        inverse = (1 / (rows * level).clamp_min(torch.finfo(dtype).tiny)).to(dtype)
        by_column += (inverse[:, None, :] @ squares)[:, 0]
    return Margins(_of_mean_one(torch.cat(by_row, dim=1)), _of_mean_one(by_column))


def _of_mean_one(scales: Tensor) -> Tensor:
    """Return scales divided by their mean; where one slice has a zero, a tiny one in its place."""
    mean = scales.mean(dim=1, keepdim=True)
    return (scales / mean.clamp_min(torch.finfo(scales.dtype).tiny)).clamp_min(_TINY)


def _kurtosis(stack: Tensor, margins: Margins) -> Floats:
    """Return E y²/(E y)² of the squares divided by the scales of their row and column, from evenly spaced rows."""
    slices, n_rows, n_columns = stack.shape
    step = max(1, -(-slices * n_rows * n_columns // _SAMPLED))
    part = stack[:, ::step].to(torch.promote_types(stack.dtype, torch.float32))
    a, b = margins.rows[:, ::step].to(part.dtype), margins.columns.to(part.dtype)
    y = part.square() / a[:, :, None] / b[:, None, :]
    first, second = y.mean(dim=(1, 2)).double(), y.square().mean(dim=(1, 2)).double()
    kurtosis: Floats = np.nan_to_num((second / first.square()).cpu().numpy(), nan=3.0)
    return kurtosis


def equalise(stack: Tensor, margins: Margins) -> Tensor:
    """Return the stack with its rows and columns scaled to equal mean squares, in each slice (Sinkhorn and Knopp)."""
    for _ in range(_PASSES):
        margins = _refined(stack, margins)
    scaled = stack / (margins.rows[:, :, None] * margins.columns[:, None, :]).sqrt()
    scaled /= scaled.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return scaled.to(torch.promote_types(stack.dtype, torch.float32))


def _alive(squares: Tensor) -> Tensor:
    total = squares.sum(dim=0)
    positive = total[total > 0]
    # torch's median of an even number is the lower of the two in the middle.
    return total >= _DEAD**2 * positive.median() if positive.numel() else total > 0
