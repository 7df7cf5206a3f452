"""Compute the eigenvalues of AᵀA for a stack of matrices A: the product on the shorter side, then a symmetric solver.

Two solvers give the same numbers. `solve_torch` runs on the weight's device and lets other threads run: training loops
use it, where a second pool of threads besides torch's is slower than either. `solve_lapack` halves the product (syrk)
and solves in place, 1.5 to 3 times faster on a CPU and in a third of the memory, but scipy holds the interpreter's lock
meanwhile: it is for a process that does nothing else.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum.arrays import Floats
from esdmon.weights.device.transfers import has_room

Solver = Callable[[Tensor, torch.dtype], Floats]
"""`(stack (slices, rows, columns), float32 or float64 to compute in) -> eigenvalues (slices, M)`, ascending.

It must not change the stack."""

_SMALL = 512  # M up to which fewer columns are reduced together than LAPACK's 32: a tenth sooner in one thread
_CHUNK = 1 << 18  # elements of a block of rows that is converted at a time, at least: a MB in float32


def solve_torch(stack: Tensor, dtype: torch.dtype) -> Floats:
    """Compute eigenvalues with torch, on the weight's device; on the CPU where a CUDA device is short of memory."""
    if stack.device.type == "cuda" and not has_room(stack.device, _cuda_bytes(stack)):
        stack = stack.cpu()
    tall = _tall(stack)
    if tall.dtype == dtype:
        gram = tall.mT @ tall
    else:
        gram = torch.zeros(*tall.shape[:-2], tall.shape[-1], tall.shape[-1], dtype=dtype, device=tall.device)
        for rows in blocks(tall):
            converted = rows.to(dtype)
            gram += converted.mT @ converted
    if gram.device.type == "cuda":
        # In float32 cuSOLVER takes a Jacobi method for M <= 512, which leaves errors of 1e-4 λmax (seen on an H200 with
        # CUDA 13); in float64 it is right, and at these sizes three times as fast.
        gram = gram.double()
    return _nonnegative(torch.linalg.eigvalsh(gram).cpu().numpy())


def _cuda_bytes(stack: Tensor) -> int:
    """Return the bytes that cuSOLVER takes at once: the product, and for one matrix 7 times that (seen on an H100)."""
    m = min(stack.shape[-2:])
    return 8 * m * m * (stack.shape[0] + 7)


def solve_lapack(stack: Tensor, dtype: torch.dtype) -> Floats:
    """Compute eigenvalues with scipy on the CPU: syrk, sytrd, sterf.

    sterf always runs in float64, which removes most of float32's error.
    """
    if 1 in stack.shape[1:]:  # one column: sterf refuses an empty off-diagonal, and there may be thousands of slices
        return solve_torch(stack, dtype)
    return np.stack([_solve_slice(matrix, dtype) for matrix in _tall(stack)])


def _solve_slice(tall: Tensor, dtype: torch.dtype) -> Floats:
    from scipy.linalg import blas, lapack  # noqa: PLC0415 -- scipy.linalg is loaded only where it solves

    double = dtype == torch.float64
    syrk = blas.dsyrk if double else blas.ssyrk
    sytrd = lapack.dsytrd if double else lapack.ssytrd
    m = tall.shape[1]
    # In the upper triangle: OpenBLAS reduces that to tridiagonal form a sixth sooner than the lower one.
    gram = np.zeros((m, m), dtype=np.float64 if double else np.float32, order="F")
    is_usable = tall.dtype == dtype and (tall.is_contiguous() or tall.mT.is_contiguous())
    for rows in (tall,) if is_usable else blocks(tall):
        # Row-major in torch is column-major of the transpose for BLAS, so that nothing is copied.
        block = rows.to(dtype).numpy()
        by_columns = block.flags.f_contiguous
        gram = syrk(1.0, block if by_columns else block.T, beta=1.0, c=gram, trans=by_columns, overwrite_c=1)
    _, diagonal, off, _, _ = sytrd(gram, lwork=(12 if m <= _SMALL else 32) * m, overwrite_a=1)
    lam, info = lapack.dsterf(diagonal.astype(np.float64), off.astype(np.float64))
    if info != 0:
        raise RuntimeError(f"{info} eigenvalues of a {m} × {m} matrix did not converge")
    return _nonnegative(lam)


def _tall(stack: Tensor) -> Tensor:
    return stack if stack.shape[-2] >= stack.shape[-1] else stack.mT


def blocks(stack: Tensor) -> tuple[Tensor, ...]:
    """Split a stack into blocks of rows, of a MB or a quarter of the Gram matrix, to convert them one by one."""
    rows, columns = stack.shape[-2:]
    return torch.split(stack, max(1, max(_CHUNK, min(rows, columns) ** 2 // 4) // (stack[..., 0, :].numel())), dim=-2)


def _nonnegative(lam: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> Floats:
    """Return eigenvalues ascending in float64; one that rounding left below zero is replaced by its size."""
    eigenvalues: Floats = np.sort(np.abs(lam.astype(np.float64)), axis=-1)
    return eigenvalues
