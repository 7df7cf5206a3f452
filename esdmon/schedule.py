"""When to read: a schedule is a pure function of the step, so that all ranks of a job agree without talking."""

import math
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
    steps = _whole("every=", interval, "is a number of steps, 1 or more, or a function of the step")

    def due(step: int) -> bool:
        return step % steps == 0

    return due


def per_decade(readings: int) -> Schedule:
    """Due at steps that are evenly spaced on a logarithmic axis: at the first step from 10^(k/readings) on.

    Most of what spectra do they do early; so a run of any length is read densely there, and rarely later.

    >>> [step for step in range(1, 2000) if per_decade(3)(step)]
    [1, 3, 5, 10, 22, 47, 100, 216, 465, 1000]
    """
    count = _whole("per_decade()", readings, "takes the readings to a decade of steps, 1 or more")

    def due(step: int) -> bool:
        # The power next to the step; its logarithm is exact to far less than a step.
        k = round(count * math.log10(step)) if step > 0 else -1
        return any(step == math.ceil(10 ** (near / count) - 1e-9) for near in (k - 1, k, k + 1) if near >= 0)

    return due


def at(*steps: int) -> Schedule:
    """Due at these steps.

    >>> [step for step in range(10) if at(1, 8)(step)]
    [1, 8]
    """
    chosen = frozenset(_whole("at()", step, "takes steps, 1 or more") for step in steps)

    def due(step: int) -> bool:
        return step in chosen

    return due


def union(*schedules: Schedule) -> Schedule:
    """Due where any of them is.

    >>> [step for step in range(1, 25) if union(per_decade(3), every(10))(step)]
    [1, 3, 5, 10, 20, 22]
    """
    several = [as_schedule(schedule) for schedule in schedules]

    def due(step: int) -> bool:
        return any(schedule(step) for schedule in several)

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


def _whole(who: str, value: int, what: str) -> int:
    """A whole number from 1 on, also one of numpy's."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or value is True:
        msg = f"{who} {what}; got {value!r}"
        raise InputError(msg)
    return number
