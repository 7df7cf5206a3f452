"""Estimate how long a reading will take, and what it needs."""

from esdmon.weights.matrix import Matrix

_PAYS = 2  # times as long as on the device must a core take; our choice, since estimates are no better
_LONGEST = 1.0  # seconds that a hook waits for one matrix at most; our choice


def nominal_seconds(matrix: Matrix) -> float:
    """Return an estimate in seconds, valid on any machine up to a common factor.

    1.5 ms, 3 µs for each eigenvalue, and NM² + 5M³ operations for each slice at 100 GFLOP/s: the product is fast, the
    eigenvalues are not. Within a factor of two of what was measured from 10 eigenvalues to 2048 × 2048 on two cores.
    """
    slices, n, m = _sizes(matrix)
    return 1.5e-3 + 3e-6 * slices * m + slices * (n * m**2 + 5 * m**3) / 1e11


def seconds_on_device(matrix: Matrix) -> float | None:
    """Return an estimate where the eigenvalues are computed on a GPU.

    None where a core takes less than twice as long, or the GPU more than a second.

    For each slice 9 µs for each eigenvalue, 1.1 ns for each thousand of M³, and 2NM² operations at 50 TFLOP/s: an H100
    took 4.7, 10.5, 26 and 117 ms in float64 for the eigenvalues of M = 512, 1024, 2048 and 4096. The rest is the CPU's.
    """
    slices, n, m = _sizes(matrix)
    seconds = 1.5e-3 + 1.2e-5 * slices * m + slices * (1.1e-12 * m**3 + 2 * n * m**2 / 5e13)
    return seconds if _PAYS * seconds <= nominal_seconds(matrix) and seconds <= _LONGEST else None


def bytes_on_device(matrix: Matrix) -> int:
    """Return the bytes that this needs besides the weight: the products, cuSOLVER's 7 times one, a copy in float64."""
    slices, n, m = _sizes(matrix)
    return 8 * m * m * (slices + 8) + 8 * slices * n * m


def _sizes(matrix: Matrix) -> tuple[int, int, int]:
    """Return (slices, N, M), N >= M; zeros for a weight that cannot be read."""
    slices, rows, columns = (0, 0, 0) if matrix.unreadable else matrix.stack_shape()
    return slices, max(rows, columns), min(rows, columns)
