"""Compute the eigenvalues of AᵀA for a stack of matrices A: the product on the shorter side, then a symmetric solver.

Two solvers give the same numbers. `solve_torch` runs on the weight's device and lets other threads run: training loops
use it, where a second pool of threads besides torch's is slower than either. `solve_lapack` takes a third of the memory
on a CPU, and mostly less time, but holds the interpreter's lock: it is for a process that does nothing else.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.lapack import eigenvalues_of_gram, nonnegative
from esdmon.weights.device.blocks import cache_blocks
from esdmon.weights.device.cuda import has_room
from esdmon.weights.device.precision import rounds_products

Solver = Callable[[Tensor, torch.dtype], Floats]
"""`(stack (slices, rows, columns), float32 or float64 to compute in) -> eigenvalues (slices, M)`, ascending.

It must not change the stack."""
_GATHERED = 1 << 19  # elements of slices that are copied at a time, at least one slice: 2 MB in float32


def solve_torch(stack: Tensor, dtype: torch.dtype) -> Floats:
    """Compute eigenvalues with torch, on the weight's device; on the CPU where a CUDA device is short of memory."""
    if stack.device.type == "cuda" and not has_room(stack.device, _cuda_bytes(stack)):
        stack = stack.cpu()
    gram = gram_of(stack, dtype)
    # In float32 cuSOLVER takes a Jacobi method for M <= 512, which leaves errors of 1e-4 λmax (seen on an H200 with
    # CUDA 13); in float64 it is right, and at these sizes three times as fast.
    gram = gram.to(torch.float64 if gram.device.type == "cuda" else dtype)
    return nonnegative(torch.linalg.eigvalsh(gram).cpu().numpy())


def gram_of(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Return AᵀA on the shorter side, (slices, M, M), in a dtype, or in float64 where torch may round float32 products.

    The switches for that reach products only: a solver for eigenvalues calls LAPACK or cuSOLVER.
    """
    tall = _tall(stack)
    if dtype == torch.float32 and rounds_products(stack.device.type, stack.dtype):
        dtype = torch.float64
    if tall.dtype == dtype:
        return tall.mT @ tall
    gram = torch.zeros(*tall.shape[:-2], tall.shape[-1], tall.shape[-1], dtype=dtype, device=tall.device)
    for rows in cache_blocks(tall):
        converted = rows.to(dtype)
        gram += converted.mT @ converted
    return gram


def _cuda_bytes(stack: Tensor) -> int:
    """Return the bytes that cuSOLVER needs: the products, and 7 times the product of one matrix (seen on an H100)."""
    m = min(stack.shape[-2:])
    return 8 * m * m * (stack.shape[0] + 7)


def solve_lapack(stack: Tensor, dtype: torch.dtype) -> Floats:
    """Compute eigenvalues with scipy on the CPU; see `esdmon.spectrum.lapack`."""
    if 1 in stack.shape[1:]:  # one column: sterf refuses an empty off-diagonal, and there may be thousands of slices
        return solve_torch(gathered(stack), dtype)
    groups = torch.split(_tall(stack), max(1, _GATHERED // stack[0].numel()))
    return np.stack([_solve_slice(matrix, dtype) for group in groups for matrix in gathered(group)])


def _solve_slice(tall: Tensor, dtype: torch.dtype) -> Floats:
    is_usable = tall.dtype == dtype and (tall.is_contiguous() or tall.mT.is_contiguous())
    parts = (rows.to(dtype).numpy() for rows in ((tall,) if is_usable else cache_blocks(tall)))
    return eigenvalues_of_gram(parts, tall.shape[1], "float64" if dtype == torch.float64 else "float32")


def gathered(stack: Tensor) -> Tensor:
    """Return the stack, or a contiguous copy if neither its rows nor its columns are contiguous.

    Those of a convolution's slices are not: each pass over a slice reads from all over the weight.
    """
    return stack if 1 in stack.stride()[-2:] else stack.contiguous()


def _tall(stack: Tensor) -> Tensor:
    return stack if stack.shape[-2] >= stack.shape[-1] else stack.mT
