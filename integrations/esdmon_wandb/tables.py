"""Make the tables that are added to a run's summary at the end: the phases, and readings that have no row."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

from esdmon.present.phase_table import PHASE_COLUMNS, phase_rows

if TYPE_CHECKING:
    import wandb

    from esdmon import LayerReport

MAX_NUMBERS = 30_000
"""Largest count of numbers that are kept: W&B takes 13 µs for each in a table, so 0.4 s at the end. Our choice."""


def phase_table(layers: Iterable[LayerReport]) -> wandb.Table:
    """Return a table with a row for each layer."""
    import wandb  # noqa: PLC0415 -- optional

    rows: list[Iterable[Any]] = [*phase_rows(layers)]
    return wandb.Table(columns=list(PHASE_COLUMNS), data=rows)


@final
class ReadingTable:
    """The numbers of all readings, a row for each. Beyond the limit, every second reading is dropped.

    Args:
        limit: most numbers to keep.
    """

    def __init__(self, limit: int = MAX_NUMBERS) -> None:
        self._limit = limit
        self._columns: dict[str, int] = {}
        self._rows: list[tuple[int, array[float]]] = []
        self._seen = 0
        self._every = 1

    def __len__(self) -> int:
        """Return the number of readings that are kept."""
        return len(self._rows)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of one reading."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        for name in numbers:
            self._columns.setdefault(name, len(self._columns))
        row = array("d", [math.nan]) * len(self._columns)
        for name, number in numbers.items():
            row[self._columns[name]] = number
        self._rows.append((step, row))
        while len(self._rows) > 2 and len(self._rows) * len(self._columns) > self._limit:
            self._rows = self._rows[::2]
            self._every *= 2

    def rewind(self, step: int) -> None:
        """Drop the readings after a step."""
        self._rows = [row for row in self._rows if row[0] <= step]

    def table(self) -> tuple[list[str | int], list[Any]]:
        """Return the names of the columns, and the rows; None for numbers that a reading does not have."""
        width = len(self._columns)
        rows = [[None if math.isnan(value) else value for value in row] for _, row in self._rows]
        return list(self._columns), [row + [None] * (width - len(row)) for row in rows]
