"""Readings that a thread begins some steps after the plan that they belong to."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.coordination import Assignment, Plan, Role
from esdmon.runtime.ranks.holdings import Holder
from esdmon.runtime.workers.source import Answer


class Parts:
    """One parameter, of which this rank holds nothing."""

    def has_fragment(self, _parameter: str) -> bool:
        return False

    def whole_size(self, _parameter: str) -> int:
        return 0

    def size(self, _parameter: str) -> int:
        return 0

    @contextmanager
    def assembled(self, *_: Any) -> Iterator[float]:
        yield 0.5


class Source:
    """The matrix of that parameter."""

    parts = Parts()
    strict = True

    def begin(self, name: str, step: int, **_: Any) -> Callable[[], LayerReport]:
        return lambda: LayerReport(name, "ok", step)


class Later:
    """An executor whose threads have other things to do."""

    clock = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Answer]] = []

    def end_within(self, _blocks: int) -> None:
        pass

    def begin_later(self, _names: Any, _step: int, job: Callable[[], Answer], _size: int) -> None:
        self.jobs.append(job)


class Ranks:
    """A store that notes which holders are looked up."""

    rank = 1
    epoch = 0

    def __init__(self) -> None:
        self.looked_up: list[tuple[int, str]] = []

    def role(self, _version: int) -> Role:
        return Role({}, frozenset())

    def holders(self, version: int, parameter: str) -> tuple[Holder, ...]:
        self.looked_up.append((version, parameter))
        return ()


def test_holders_are_those_of_the_plan_that_a_reading_belongs_to() -> None:
    """Not those of a later plan, which has come before a thread was free: they have no copies for the earlier one."""
    ranks, executor = Ranks(), Later()
    assignments = Assignments(Source(), executor, ranks, limits=Limits())  # type: ignore[arg-type]
    for version, step in ((1, 20), (1, 40), (2, 60)):
        assignments.follow(Plan(version, (Assignment(1, ("matrix",), ("parameter",)),)), step)
    assert ranks.looked_up == []
    answers = [job() for job in executor.jobs]
    assert ranks.looked_up == [(1, "parameter"), (2, "parameter")]
    assert [(name, layer.step) for answer in answers for name, (layer, _) in answer.items()] == [
        ("matrix", step) for step in (20, 40, 60)
    ]
