"""Readings that a thread begins some steps after the plan that they belong to."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.fragment_exchange import FragmentCopy, FragmentExchange, Moved
from esdmon.runtime.ranks.holdings import Holder
from esdmon.runtime.ranks.messages import Assignment, Plan, Role
from esdmon.runtime.workers.source import Answer
from esdmon.schedule.budget import Budget


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


class Held(Parts):
    """One parameter, of which this rank holds a fragment."""

    def __init__(self) -> None:
        self.n_copied = 0

    def has_fragment(self, _parameter: str) -> bool:
        return True

    def mark(self, _parameter: str) -> Callable[[], Moved]:
        return lambda: Moved(0.0, 1.0)

    def copy(self, _parameter: str) -> Callable[[], memoryview]:
        self.n_copied += 1
        return lambda: memoryview(b"")


class Broken(Held):
    """One that cannot be copied."""

    def copy(self, _parameter: str) -> Callable[[], memoryview]:
        raise ValueError("is freed")

    @contextmanager
    def assembled(self, _parameters: Any, own: Mapping[str, FragmentCopy], _fetch: Any) -> Iterator[float]:
        own["parameter"][0]()
        yield 0.5


class Source:
    """The matrix of that parameter."""

    strict = True

    def __init__(self, parts: Parts | None = None) -> None:
        self.parts = parts or Parts()

    def begin(self, name: str, step: int, **_: Any) -> Callable[[], LayerReport]:
        return lambda: LayerReport(name, "ok", step)


class Later:
    """An executor whose threads have other things to do."""

    clock = staticmethod(time.perf_counter)
    budget = Budget(None)

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

    def __init__(self, copies: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.looked_up: list[tuple[int, str]] = []
        self.copies = copies or {}

    def role(self, _version: int) -> Role:
        return Role({}, self.copies)

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


@pytest.mark.parametrize(
    ("copies", "owner", "n_copied"), [({"parameter": (2, 3)}, 0, 1), ({"parameter": (2, 3)}, 2, 0), ({}, 0, 0)]
)
def test_a_fragment_is_copied_for_an_owner_that_does_not_hold_it(
    copies: Mapping[str, tuple[int, ...]], owner: int, n_copied: int
) -> None:
    """By the one rank that gives it: a copy that nobody fetches takes memory, and closing would wait for it."""
    parts = Held()
    assignments = Assignments(Source(parts), Later(), Ranks(copies), limits=Limits())  # type: ignore[arg-type]
    exchange = assignments.announcer.exchange = FragmentExchange(b"key", most_bytes=1, patience=0.1)
    assignments.follow(Plan(1, (Assignment(owner, ("matrix",), ("parameter",)),)), 20)
    assert (parts.n_copied, exchange.n_kept) == (n_copied, n_copied)


def test_an_owner_that_cannot_copy_its_own_part_says_so() -> None:
    """And waits for no other rank, none of which has copied it."""
    executor = Later()
    assignments = Assignments(Source(Broken()), executor, Ranks(), limits=Limits())  # type: ignore[arg-type]
    assignments.announcer.exchange = FragmentExchange(b"key", most_bytes=1, patience=0.1)
    assignments.follow(Plan(1, (Assignment(1, ("matrix",), ("parameter",)),)), 20)
    ((layer, _),) = executor.jobs[0]().values()
    assert (layer.status, layer.reason) == ("failed", "rank 1 cannot read its part: ValueError: is freed")
