"""The threads of scipy's OpenBLAS."""

from collections.abc import Callable

from esdmon.spectrum.lapack import _openblas


def thread_functions() -> tuple[Callable[..., int], Callable[..., int]]:
    """What sets the number of threads, and what returns it."""
    found = _openblas("set_num_threads"), _openblas("get_num_threads")
    assert found[0] is not None, "scipy of PyPI on Linux has OpenBLAS"
    assert found[1] is not None
    return found[0], found[1]
