"""Define schedules: pure functions of the step, so that all ranks of a job agree without communication.

Schedules of this module can be pickled, copied and compared.
"""

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TypeAlias, final

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError

Schedule: TypeAlias = Callable[[int], bool]


@explain_wrong_calls
def every(interval: int) -> Schedule:
    """Return a schedule that is due at each step that `interval` divides.

    >>> [step for step in range(1, 10) if every(3)(step)]
    [3, 6, 9]
    """
    return _Every(_whole("every=", interval, "must be a number of steps, 1 or more, or a function of the step"))


@explain_wrong_calls
def per_decade(readings: int) -> Schedule:
    """Return a schedule that is evenly spaced on a logarithmic axis: due at 10^(k/readings), rounded up to a step.

    Spectra change most early in a run, so readings are dense there, and rare later.

    >>> [step for step in range(1, 2000) if per_decade(3)(step)]
    [1, 3, 5, 10, 22, 47, 100, 216, 465, 1000]
    """
    return _PerDecade(_whole("per_decade()", readings, "takes the readings to a decade of steps, 1 or more"))


def at(*steps: int) -> Schedule:
    """Return a schedule that is due at these steps.

    >>> [step for step in range(10) if at(1, 8)(step)]
    [1, 8]
    """
    return _At(frozenset(_whole("at()", step, "takes steps, 1 or more") for step in steps))


def union(*schedules: "int | Schedule") -> Schedule:
    """Return a schedule that is due at each step at which any of these schedules is due.

    >>> [step for step in range(1, 25) if union(per_decade(3), every(10))(step)]
    [1, 3, 5, 10, 20, 22]
    """
    return _Union(tuple(as_schedule(schedule) for schedule in schedules))


def next_due(schedule: Schedule, step: int) -> float:
    """Return the first step after `step` at which a schedule may be due; for a user's function, the next step.

    >>> next_due(every(20), 45), next_due(union(every(20), at(50)), 45), next_due(at(8), 45)
    (60, 50, inf)
    """
    match schedule:
        case _Every(interval):
            return step - step % interval + interval
        case _PerDecade():
            return next(due for due in schedule.steps_from(step) if due > step)
        case _At(steps):
            return min((due for due in steps if due > step), default=math.inf)
        case _Union(schedules):
            return min((next_due(each, step) for each in schedules), default=math.inf)
    return step + 1


def as_schedule(value: "int | Schedule") -> Schedule:
    """Return a schedule for a number of steps, or for a function of the user."""
    if not callable(value):
        return every(value)
    try:
        value(1)
    except TypeError as error:
        raise InputError(f"every= as a function takes the step and says whether to read; {value!r}: {error}") from error
    return value


@final
@dataclass(frozen=True, slots=True, repr=False)
class _Every:
    interval: int

    def __call__(self, step: int) -> bool:
        return step % self.interval == 0

    def __repr__(self) -> str:
        return f"every({self.interval})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class _PerDecade:
    readings: int

    def __call__(self, step: int) -> bool:
        return step > 0 and step in islice(self.steps_from(step), 3)

    def steps_from(self, step: int) -> Iterator[int]:
        """Yield the due steps, beginning one or two due steps before a step."""
        # The nearest power; the error of its logarithm is far below one step.
        nearest = round(self.readings * math.log10(max(1, step)))
        return (math.ceil(10 ** (k / self.readings) - 1e-9) for k in count(max(0, nearest - 1)))

    def __repr__(self) -> str:
        return f"per_decade({self.readings})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class _At:
    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps

    def __repr__(self) -> str:
        return f"at({', '.join(map(str, sorted(self.steps)))})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class _Union:
    schedules: tuple[Schedule, ...]

    def __call__(self, step: int) -> bool:
        return any(schedule(step) for schedule in self.schedules)

    def __repr__(self) -> str:
        return f"union({', '.join(map(repr, self.schedules))})"


def _whole(who: str, value: int, what: str) -> int:
    """Return a whole number >= 1, also a number of numpy, as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or value is True:
        msg = f"{who} {what}; got {value!r}"
        raise InputError(msg)
    return number
