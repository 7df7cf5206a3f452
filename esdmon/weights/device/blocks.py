"""Split a stack into blocks of rows, and convert 16-bit numbers, so that a pass over a weight needs little memory."""

import torch
from torch import Tensor

from esdmon.spectrum.lapack import rows_of_block

_LARGE = 1 << 22  # elements: 16 MB in float32


def large_blocks(stack: Tensor) -> tuple[Tensor, ...]:
    """Split a stack on an accelerator into blocks of rows of 16 MB in float32: few kernels, and little memory."""
    slices, _, columns = stack.shape
    return torch.split(stack, max(1, _LARGE // (slices * columns)), dim=1)


def cache_blocks(stack: Tensor) -> tuple[Tensor, ...]:
    """Split a stack into blocks of rows that fit a cache: of a MB, or a quarter of the Gram matrix."""
    return torch.split(stack, rows_of_block(stack.numel() // stack.shape[-2], min(stack.shape[-2:])), dim=-2)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float32; one in float64 unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
