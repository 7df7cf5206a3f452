"""A few numbers of a weight, always those at the same places.

The elements sit at multiples of the golden ratio modulo 1: evenly spread, along no row or column, and without drawing a
random number.
"""

from functools import lru_cache

import torch
from torch import Tensor

from esdmon.weights.matrix import Matrix
from esdmon.weights.precision import weight_now
from esdmon.weights.readable import check_readable

_SAMPLE = 4096  # elements at most; our choice
_MEMORY = 64 << 20  # bytes of the samples of all matrices together, at 4 bytes an element
_GOLDEN = (5**0.5 - 1) / 2


def sample(matrix: Matrix, size: int) -> Tensor:
    """Return up to `size` elements of a matrix as it is now, or what it gives in their place (`Matrix.probe`).

    Raises:
        UnreadableError: as `read_spectrum` does for what holds no numbers.
    """
    if matrix.probe is not None:
        with torch.no_grad():
            return matrix.probe(size)
    weight = weight_now(matrix)
    check_readable(weight)
    return elements(matrix, weight, size)


def share(matrices: int) -> int:
    """Return the elements that may be sampled of each of so many matrices: fewer from 4096 matrices on."""
    return max(1, min(_SAMPLE, _MEMORY // 4 // max(1, matrices)))


def elements(matrix: Matrix, weight: Tensor, size: int) -> Tensor:
    """Return the sample of a matrix from a weight of its own shape, which may be that of another model."""
    slices, rows, columns = matrix.stack_shape_of(weight)
    # Where the weight holds nothing but this matrix, its elements need not be brought into a stack.
    whole = weight.numel() == slices * rows * columns
    return some(weight if whole else matrix.to_stack(weight), size)


def some(tensor: Tensor, size: int) -> Tensor:
    """Return up to `size` of a tensor's elements."""
    return tensor.take(_positions(tensor.numel(), size, tensor.device))


def some_of_sample(taken: Tensor, count: int, size: int) -> Tensor:
    """Return from a sample of `count` elements a smaller one: what `some` would have taken of them."""
    return taken[:size] if taken.numel() < count else some(taken, size)


@lru_cache(maxsize=64)
def _positions(count: int, size: int, device: torch.device) -> Tensor:
    if count <= size:
        return torch.arange(count, dtype=torch.int64, device=device)
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    return (places * _GOLDEN).frac().mul(count).long().to(device)
