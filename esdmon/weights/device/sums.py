"""Sum up the elements of a stack of matrices in one pass over memory, block by block."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from esdmon.spectrum import preparation
from esdmon.spectrum.preparation import CANCELS, Sums
from esdmon.weights.device.blocks import large_blocks, widened
from esdmon.weights.device.margins import Margins, as_array


def sum_up(stack: Tensor) -> Sums[Margins]:
    """Return the statistics of a (slices, rows, columns) stack."""
    if stack.stride(2) != 1 and stack.stride(1) == 1:  # transposed: its columns lie in memory as rows
        sums = sum_up(stack.mT)
        return replace(sums, margins=Margins(sums.margins.columns, sums.margins.rows))
    array = as_array(stack)
    if array is not None:
        found = preparation.sum_up(array)
        margins = Margins(torch.from_numpy(found.margins.rows), torch.from_numpy(found.margins.columns))
        return Sums(found.minimum, found.maximum, found.mean, found.variance, found.may_have_zeros, margins)
    _, n_rows, n_columns = stack.shape
    parts = large_blocks(stack)
    by_column = torch.zeros(stack.shape[0], n_columns, dtype=torch.float64, device=stack.device)
    minima, maxima, totals, smallest, by_row = [], [], [], [], []
    for part in parts:
        values = widened(part)
        minima.append(values.amin())
        maxima.append(values.amax())
        totals.append(values.sum())
        squares = values.square()
        smallest.append(squares.amin())
        by_row.append(squares.sum(dim=2))
        by_column += squares.sum(dim=1)
    margins = Margins(torch.cat(by_row, dim=1).double() / n_columns, by_column / n_rows)
    minimum, maximum = float(torch.stack(minima).amin()), float(torch.stack(maxima).amax())
    mean = float(torch.stack(totals).double().sum()) / stack.numel()
    mean_square = float(margins.columns.mean())
    square = mean * mean  # not mean**2, which raises where it is beyond float64
    if minimum == maximum:
        variance = 0.0  # and not what rounding leaves of it
    else:
        variance = mean_square - square if square < CANCELS * mean_square else _variance(parts, mean)
    return Sums(minimum, maximum, mean, variance, bool(torch.stack(smallest).amin() == 0), margins)


def _variance(parts: Sequence[Tensor], mean: float) -> float:
    """Return the mean square of the distances from the mean, in a pass of its own."""
    norms = torch.stack([torch.linalg.vector_norm(widened(part) - mean) for part in parts])
    return float(norms.double().square().sum()) / sum(part.numel() for part in parts)
