"""Define `MemoryLimit`, which limits the memory that several threads hold at the same time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Condition
from typing import final


@final
class MemoryLimit:
    """Limit the bytes that threads hold to `most_bytes`; a single thread may hold more if no other holds any."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._changed = Condition()
        self.held_bytes = 0
        self.peak_bytes = 0
        """The largest number of bytes that were held at any time."""

    @contextmanager
    def holding(self, size: int, waiting: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Hold a number of bytes in a block; before the block wait, inside `waiting()`, until there is room."""
        with waiting(), self._changed:
            self._changed.wait_for(lambda: not self.held_bytes or self.held_bytes + size <= self._most_bytes)
            self.held_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        try:
            yield
        finally:
            with self._changed:
                self.held_bytes -= size
                self._changed.notify_all()
