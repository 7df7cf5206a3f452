"""Estimate the seconds and the memory that a reading takes."""

from esdmon.weights.matrix import Matrix

_MIN_SPEEDUP = 2  # of the GPU over a core; our choice: the estimates are within a factor of two
_MAX_SECONDS = 1.0  # that a hook waits for one matrix; our choice


def nominal_seconds(matrix: Matrix) -> float:
    """Return the seconds that a reading takes on a CPU, valid on any machine up to a common factor.

    1.5 ms, 3 µs for each eigenvalue, and for each slice NM² + 5M³ operations at 100 GFLOP/s. Within a factor of two of
    what two cores took, from 10 eigenvalues to a matrix of 2048 × 2048.
    """
    slices, n, m = _sizes(matrix)
    return 1.5e-3 + 3e-6 * slices * m + slices * (n * m**2 + 5 * m**3) / 1e11


def seconds_on_device(matrix: Matrix) -> float | None:
    """Return the seconds of a reading whose eigenvalues a GPU computes; None if a GPU saves too little time.

    None is returned if a core would take less than twice as long, or the GPU more than a second.

    On the GPU each slice takes 9 µs · M + 1.1e-12 s · M³ for the eigenvalues, and 2NM² operations at 50 TFLOP/s for the
    product: an H100 took 4.7, 10.5, 26 and 117 ms in float64 for the eigenvalues of M = 512, 1024, 2048 and 4096. The
    CPU adds the 1.5 ms, and 3 µs for each eigenvalue, of `nominal_seconds`.
    """
    slices, n, m = _sizes(matrix)
    seconds = 1.5e-3 + 1.2e-5 * slices * m + slices * (1.1e-12 * m**3 + 2 * n * m**2 / 5e13)
    return seconds if _MIN_SPEEDUP * seconds <= nominal_seconds(matrix) and seconds <= _MAX_SECONDS else None


def bytes_on_device(matrix: Matrix) -> int:
    """Return the bytes that the eigenvalues on a GPU need besides the weight.

    They are those of the products, of cuSOLVER, 7 times one product, and of a copy of the weight in float64.
    """
    slices, n, m = _sizes(matrix)
    return 8 * m * m * (slices + 8) + 8 * slices * n * m


def _sizes(matrix: Matrix) -> tuple[int, int, int]:
    """Return (slices, N, M), N >= M; zeros for a weight that cannot be read."""
    slices, rows, columns = (0, 0, 0) if matrix.unreadable else matrix.stack_shape()
    return slices, max(rows, columns), min(rows, columns)
