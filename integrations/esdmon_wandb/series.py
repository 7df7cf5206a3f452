"""The readings of a run as one table, for those that found no row of the user's to ride in."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any, final

MOST = 30_000
"""Numbers that are kept: W&B takes 13 µs for each to make a table of them, so 0.4 s at the end. Our choice."""


@final
class Series:
    """What was read, reading by reading. Where that becomes too much, every second reading is dropped.

    Args:
        most: numbers that are kept at most.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._columns: dict[str, int] = {}
        self._rows: list[tuple[int, array[float]]] = []
        self._seen = 0
        self._every = 1

    def __len__(self) -> int:
        """Return how many readings are kept."""
        return len(self._rows)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep the numbers of one reading."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        for name in numbers:
            self._columns.setdefault(name, len(self._columns))
        row = array("d", [math.nan]) * len(self._columns)
        for name, number in numbers.items():
            row[self._columns[name]] = number
        self._rows.append((step, row))
        while len(self._rows) > 2 and len(self._rows) * len(self._columns) > self._most:
            self._rows = self._rows[::2]
            self._every *= 2

    def rewind(self, step: int) -> None:
        """Drop the readings after a step."""
        self._rows = [row for row in self._rows if row[0] <= step]

    def table(self) -> tuple[list[str | int], list[Any]]:
        """Return the names of the columns, and the rows; what was not read then is None."""
        width = len(self._columns)
        rows = [[None if math.isnan(value) else value for value in row] for _, row in self._rows]
        return list(self._columns), [row + [None] * (width - len(row)) for row in rows]
