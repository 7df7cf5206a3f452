"""Decompose a stack of matrices with scipy's LAPACK on the CPU: syrk, sytrd, sterf.

syrk computes half of the product, and the solver works in place, with a third of torch's memory. In one thread it takes
0.7 to 0.9 times as long as torch with MKL for M from 512 to 1024, 1.0 times at 2048, and 1.3 times at 4096, where MKL
reduces to tridiagonal form in two stages. scipy holds the interpreter's lock meanwhile, so use it only in a process
that does nothing else.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, final

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.decomposition import Precision
from esdmon.spectrum.margins import Array, Margins, scales_of
from esdmon.spectrum.rest import scales_of_rest
from esdmon.spectrum.scales import Scales

_SMALL = 512  # up to this M fewer columns than LAPACK's 32 are reduced together: a tenth faster in one thread
_CHUNK = 1 << 18  # smallest number of elements that are converted at a time: 1 MB in float32


@final
@dataclass(frozen=True, slots=True)
class ArrayStack:
    """A weight, and the stacks derived from it, as arrays of float32 or float64; see `decomposition.Stack`."""

    arrays: Mapping[str, Array]
    """Arrays of shape (slices, rows, columns), by "weight", "shuffled", "equalised" and "windows"."""
    margins: Margins
    """Mean squares of the rows and columns of the weight."""

    def eigenvalues(self, precision: Precision, *, of: str = "weight") -> Floats:
        """Return the eigenvalues of AᵀA, (slices, M)."""
        tall = _tall(self.arrays[of])
        if 1 in tall.shape[1:]:  # one column: sterf rejects an empty off-diagonal, and there may be thousands of slices
            wide = tall.astype(precision)
            return nonnegative(np.linalg.eigvalsh(wide.mT @ wide))
        m = tall.shape[2]
        return np.stack([eigenvalues_of_gram(_blocks(matrix, np.dtype(precision)), m, precision) for matrix in tall])

    def eigenvectors(self) -> tuple[Floats, Floats]:
        """Return eigenvalues and eigenvectors of AᵀA."""
        tall = _tall(self.arrays["weight"]).astype(np.float64)
        lam, vectors = np.linalg.eigh(tall.mT @ tall)
        return np.abs(lam), vectors

    def singular_values(self) -> Floats:
        """Return the singular values."""
        return np.linalg.svd(self.arrays["weight"].astype(np.float64), compute_uv=False)

    def scales(self) -> Scales:
        """Return the scales of rows and columns."""
        return scales_of(self.arrays["weight"], self.margins)

    def scales_of_rest(self, counts: Sequence[int]) -> Scales:
        """Return the scales of the weight without the strongest directions of each slice."""
        return scales_of_rest(self.arrays["weight"], counts)


def eigenvalues_of_gram(blocks: Iterable[Array], m: int, precision: Precision) -> Floats:
    """Return the eigenvalues of AᵀA, ascending.

    sterf always runs in float64, which removes most of float32's error.

    Args:
        blocks: blocks of rows of A, of the type `precision`, each row-major or column-major.
        m: number of columns of A.
        precision: the type to compute in.

    Raises:
        RuntimeError: if the eigenvalues did not converge.
    """
    from scipy.linalg import blas, lapack  # noqa: PLC0415 -- scipy.linalg is loaded only where it solves

    double = precision == "float64"
    syrk = blas.dsyrk if double else blas.ssyrk
    sytrd = lapack.dsytrd if double else lapack.ssytrd
    # The upper triangle, since OpenBLAS reduces it to tridiagonal form a sixth faster than the lower one.
    gram = np.zeros((m, m), dtype=precision, order="F")
    for block in blocks:
        # For BLAS a row-major block is the column-major transpose, so nothing is copied.
        by_columns = block.flags.f_contiguous
        gram = syrk(1.0, block if by_columns else block.T, beta=1.0, c=gram, trans=by_columns, overwrite_c=1)
    _, diagonal, off, _, _ = sytrd(gram, lwork=(12 if m <= _SMALL else 32) * m, overwrite_a=1)
    lam, info = lapack.dsterf(diagonal.astype(np.float64), off.astype(np.float64))
    if info != 0:
        msg = f"{info} eigenvalues of a {m} × {m} matrix did not converge"
        raise RuntimeError(msg)
    return nonnegative(lam)


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Limit scipy's BLAS to one thread in a block, if it is OpenBLAS; the setting holds for the whole process.

    Threads of OpenBLAS wait by spinning: two threads on two cores, one of which another process uses, take 1.7 times as
    long for the eigenvalues of 3072 × 3072 matrices as one thread (tests/benchmarks/workers.py).
    """
    set_threads, get_threads = _openblas("set_num_threads"), _openblas("get_num_threads")
    if set_threads is None or get_threads is None:
        yield
        return
    lock = _one_thread.lock
    with lock:
        if not _one_thread.blocks:
            _one_thread.before = get_threads()
            set_threads(1)
        _one_thread.blocks += 1
    try:
        yield
    finally:
        if lock is _one_thread.lock:  # else this process was forked in the block, and `_leave_blocks` has left it
            with lock:
                if _one_thread.blocks == 1:
                    set_threads(_one_thread.before)
                _one_thread.blocks -= 1


@dataclass(slots=True)
class _OneThread:
    """The number of open blocks of `in_one_thread`, and the number of threads before the first."""

    lock: Lock
    blocks: int = 0
    before: int = 1


_one_thread = _OneThread(Lock())


def _leave_blocks() -> None:
    """Leave all blocks in a forked process: most belong to threads that do not exist there."""
    _one_thread.lock = Lock()  # a thread that does not exist here may hold the old lock
    if _one_thread.blocks and (set_threads := _openblas("set_num_threads")) is not None:
        set_threads(_one_thread.before)
    _one_thread.blocks = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_blocks)


@cache
def _openblas(name: str) -> Callable[..., int] | None:
    """Return a function of the OpenBLAS that scipy is linked with; None if it is another library."""
    with suppress(Exception):  # another build of scipy
        from scipy.linalg import _flapack  # noqa: PLC0415

        library = ctypes.CDLL(_flapack.__file__)  # also finds names in the libraries that it is linked with
        for symbol in (f"scipy_openblas_{name}", f"openblas_{name}"):
            with suppress(AttributeError):
                return getattr(library, symbol)
    return None


def rows_of_block(elements_of_row: int, m: int) -> int:
    """Return how many rows are converted at a time: 1 MB of them, or a quarter of the size of the Gram matrix."""
    return max(1, max(_CHUNK, m**2 // 4) // elements_of_row)


def nonnegative(lam: Array) -> Floats:
    """Return eigenvalues ascending in float64; the absolute value of one that rounding has made negative."""
    return np.sort(np.abs(lam.astype(np.float64)), axis=-1)


def _tall(stack: Array) -> Array:
    return stack if stack.shape[1] >= stack.shape[2] else stack.mT


def _blocks(tall: Array, dtype: "np.dtype[Any]") -> Iterator[Array]:
    if tall.dtype == dtype and (tall.flags.c_contiguous or tall.flags.f_contiguous):
        yield tall
        return
    count = rows_of_block(tall.shape[1], tall.shape[1])
    for start in range(0, tall.shape[0], count):
        yield tall[start : start + count].astype(dtype)
