"""The threads of scipy's OpenBLAS."""

from collections.abc import Callable

import esdmon
from esdmon.spectrum import Measure, Spectrum
from esdmon.spectrum.lapack import _openblas


def thread_functions() -> tuple[Callable[..., int], Callable[..., int]]:
    """What sets the number of threads, and what returns it."""
    found = _openblas("set_num_threads"), _openblas("get_num_threads")
    assert found[0] is not None, "scipy of PyPI on Linux has OpenBLAS"
    assert found[1] is not None
    return found[0], found[1]


class NotesThreads:
    """A plugin whose measure "mine" notes in `seen` how many threads the BLAS has at each reading.

    Args:
        meanwhile: called at each reading.
    """

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.seen: list[int] = []
        self._get_threads = thread_functions()[1]
        self._meanwhile = meanwhile

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> list[Measure]:
        return [Measure("mine", self._mine)]

    def _mine(self, _spectrum: Spectrum) -> float:
        self.seen.append(self._get_threads())
        self._meanwhile()
        return 1.0
