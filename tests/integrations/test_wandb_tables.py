"""The table of readings that have no row, and how they are found."""

from itertools import pairwise
from typing import Any

import pytest

from esdmon.present.scalars import Namespace
from esdmon_wandb.row import NextRow
from esdmon_wandb.tables import ReadingTable


def test_a_table_has_a_column_for_each_number_and_a_row_for_each_reading() -> None:
    """A missing number is None, also if its column comes later."""
    table = ReadingTable()
    table.add(1, {"a": 1.0, "b": float("nan")})
    table.add(2, {"c": 3.0})
    assert table.table() == (["a", "b", "c"], [[1.0, None, None], [None, None, 3.0]])


@pytest.mark.parametrize("most", [10, 20, 100])
def test_of_a_long_run_readings_in_even_distances_are_kept(most: int) -> None:
    table = ReadingTable(most)
    for step in range(1000):
        table.add(step, {"x": float(step), "y": 0.0})
    _, rows = table.table()
    steps = [row[0] for row in rows]
    assert len(table) == len(steps) <= most // 2
    assert len(steps) > most // 8
    assert {b - a for a, b in pairwise(steps)} == {steps[1]}


def test_what_is_rewound_is_dropped() -> None:
    table = ReadingTable()
    for step in (1, 2, 3):
        table.add(step, {"x": float(step)})
    table.rewind(2)
    assert table.table() == (["x"], [[1.0], [2.0]])


@pytest.mark.parametrize("attribute", ["_local_step", "_step"], ids=["from wandb 0.28", "up to wandb 0.27"])
def test_a_row_that_waits_is_known_in_every_version(attribute: str) -> None:
    """The pinned version has only one of the attributes: `test_wandb.py` tests it with real runs."""

    class Run:
        def define_metric(self, *_: object, **__: object) -> None: ...
        def log(self, *_: object, **__: object) -> None: ...

    run: Any = Run()
    setattr(run, attribute, 3)
    row = NextRow(run, Namespace(run, "the run"))
    row.add_reading({"a": 1.0}, 1.0)
    assert row.has_last_reading
    setattr(run, attribute, 4)
    assert not row.has_last_reading
