"""Sample elements of weights, at the same places each time.

The places are multiples of the golden ratio modulo 1: evenly spread, along no row or column, and found without drawing
a random number.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from esdmon.weights.device.precision import read_weight
from esdmon.weights.matrix import Matrix

_MAX_ELEMENTS = 4096  # of one matrix; our choice
_MAX_BYTES = 64 << 20  # of the samples of all matrices together, at 4 bytes an element; our choice
GOLDEN_RATIO = (5**0.5 - 1) / 2


def sample_size(n_matrices: int) -> int:
    """Return how many elements of each matrix to sample: 4096, and fewer for more than 4096 matrices."""
    return max(1, min(_MAX_ELEMENTS, _MAX_BYTES // 4 // max(1, n_matrices)))


def sample_matrix(matrix: Matrix, size: int) -> Tensor:
    """Return up to `size` elements of the current weight, or the result of `Matrix.probe`.

    Raises:
        UnreadableError: for a weight that holds no numbers; see `check_readable`.
    """
    if matrix.probe is not None:
        with torch.no_grad():
            return matrix.probe(size)
    return sample_value(matrix, read_weight(matrix), size)


def sample_value(matrix: Matrix, weight: Tensor, size: int) -> Tensor:
    """Return up to `size` elements of `weight`, a value that the matrix has or had, at the places of the matrix."""
    # If the weight contains only this matrix, its elements need not be converted to a stack.
    is_whole = weight.numel() == matrix.size_for(weight).n_elements
    return sample_tensor(weight if is_whole else matrix.to_stack(weight), size)


def sample_tensor(tensor: Tensor, size: int) -> Tensor:
    """Return up to `size` elements of a tensor."""
    return tensor.take(_positions(tensor.numel(), size, tensor.device))


def relative_move(moved: float, norm: float) -> float:
    """Return ‖ΔW‖/‖W‖ from both norms; infinite for a weight that was zero and has moved, 0 for one that has not.

    It is NaN if a norm is NaN.
    """
    if norm > 0 or math.isnan(norm):
        return moved / norm
    return moved * math.inf if moved else 0.0


def reduce_sample(taken: Tensor, count: int, size: int) -> Tensor:
    """Return up to `size` elements of a sample of `count` elements, the same as `sample_tensor` would return."""
    return taken[:size] if taken.numel() < count else sample_tensor(taken, size)


@lru_cache(maxsize=64)
def _positions(count: int, size: int, device: torch.device) -> Tensor:
    if count <= size:
        return torch.arange(count, dtype=torch.int64, device=device)
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    return (places * GOLDEN_RATIO).frac().mul(count).long().to(device)
