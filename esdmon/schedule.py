"""When to read: a schedule is a pure function of the step, so that all ranks of a job agree without talking."""

import operator
from collections.abc import Callable
from typing import TypeAlias

from esdmon.errors import InputError

Schedule: TypeAlias = Callable[[int], bool]


def every(interval: int) -> Schedule:
    """Due at each step that `interval` divides.

    >>> [step for step in range(1, 10) if every(3)(step)]
    [3, 6, 9]
    """
    try:
        steps = operator.index(interval)
    except TypeError:
        steps = 0
    if steps < 1 or interval is True:
        msg = f"every= is a number of steps, 1 or more, or a function of the step; got {interval!r}"
        raise InputError(msg)

    def due(step: int) -> bool:
        return step % steps == 0

    return due


def never(_step: int) -> bool:
    """Due at no step: for the ranks of a job that leave reading to another."""
    return False


def as_schedule(value: "int | Schedule") -> Schedule:
    """A number of steps or a schedule of the user's own, as a schedule."""
    if not callable(value):
        return every(value)
    try:
        value(1)
    except TypeError as error:
        raise InputError(f"every= as a function takes the step and says whether to read; {value!r}: {error}") from error
    return value
