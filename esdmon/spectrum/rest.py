"""Remove the strongest directions of a stack of matrices, to measure the scales of its noise without its spikes.

If spikes are as strong in small rows as in large ones, the mean squares of all rows are alike. But the noise has
unequal scales, and so a tail that no law of equal scales explains. Without its k strongest singular vectors W is nearly
noise, so the scales of the noise can be measured.

Method: subspace iteration for the right singular vectors V; then W − (W·V)·Vᵀ. This module is for numpy arrays;
`esdmon.weights.device.rest` does the same for tensors on their device.
"""

from collections.abc import Sequence

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.margins import Array, Margins, scales_of
from esdmon.spectrum.scales import Scales

PASSES = 4
"""Number of subspace iterations; each reduces the mixing of two directions by the ratio of their λ. Our choice."""
SPARE = 4
"""Number of directions that are computed beside the k, since the last ones converge slowly. Our choice."""
_SEED = 0  # of the start


def scales_of_rest(stack: Array, counts: Sequence[int]) -> Scales:
    """Return the scales of a stack without the `counts` strongest directions of each slice.

    The directions are approximate. So that W and its transpose have the same ones, the side whose mean squares differ
    less is used as the columns.
    """
    if not _margins(stack).columns_first():
        stack = stack.mT
    basis = start(stack.shape, counts).astype(stack.dtype)
    for _ in range(PASSES):
        basis = np.linalg.qr(stack.mT @ (stack @ basis))[0]
    image = stack @ basis
    _, rotation = np.linalg.eigh(image.mT @ image)
    basis = (basis @ rotation)[..., ::-1] * kept(counts, basis.shape[2]).astype(stack.dtype)
    rest = stack - (stack @ basis) @ basis.mT
    return scales_of(rest, _margins(rest))


def _margins(stack: Array) -> Margins:
    squares = np.square(stack, dtype=np.float64)
    return Margins(squares.mean(axis=2), squares.mean(axis=1))


def start(shape: tuple[int, ...], counts: Sequence[int]) -> Floats:
    """Return random directions to start from, (slices, columns, k), the same at each reading."""
    slices, rows, columns = shape
    random = np.random.default_rng(_SEED)
    return random.standard_normal((slices, columns, min(max(counts) + SPARE, rows, columns)))


def kept(counts: Sequence[int], size: int) -> Floats:
    """Return a mask of the first `counts` of `size` directions of each slice, (slices, 1, size)."""
    return (np.arange(size) < np.array(counts)[:, None])[:, None, :].astype(np.float64)
