"""Idle cores that a test sets."""

from collections.abc import Callable
from typing import Any


class Idle:
    """Idle cores, as a test says."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def __call__(self, **_: Any) -> int:
        return self._count()

    def is_known(self) -> bool:
        return True
