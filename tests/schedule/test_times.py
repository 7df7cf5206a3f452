"""Schedules: pure functions of the step."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.errors import InputError
from esdmon.schedule import Schedule, as_schedule, at, every, next_due, per_decade, union


@given(interval=st.integers(1, 1000), steps=st.integers(0, 2000))
def test_every_is_due_once_in_each_interval(interval: int, steps: int) -> None:
    """Among the first n steps, n // interval are due, and the first of them is the interval itself."""
    due = [step for step in range(1, steps + 1) if every(interval)(step)]
    assert len(due) == steps // interval
    assert due[:1] == ([interval] if interval <= steps else [])


SCHEDULES = st.recursive(
    st.integers(1, 300).map(every)
    | st.integers(1, 12).map(per_decade)
    | st.lists(st.integers(1, 600), max_size=4).map(lambda steps: at(*steps)),
    lambda inner: st.lists(inner, max_size=3).map(lambda schedules: union(*schedules)),
    max_leaves=4,
)


@given(schedule=SCHEDULES, step=st.integers(0, 400))
def test_the_next_due_step_is_the_first_that_the_schedule_says(schedule: Schedule, step: int) -> None:
    """So that steps before it need not be looked at."""
    following = next_due(schedule, step)
    due = [later for later in range(step + 1, 5000) if schedule(later)]
    assert following == (due[0] if due else math.inf)


def test_a_function_of_the_users_may_be_due_at_any_step() -> None:
    """Alone and beside others."""
    assert next_due(lambda _step: False, 7) == 8
    assert next_due(union(every(100), lambda _step: False), 7) == 8


@pytest.mark.parametrize("interval", [0, -1, 2.0, True, "200", None], ids=repr)
def test_every_refuses_what_is_no_number_of_steps(interval: Any) -> None:
    """The message names the argument and shows what was got."""
    with pytest.raises(InputError, match=rf"every= must be a number of steps, 1 or more, .*got {interval!r}"):
        every(interval)


@given(readings=st.integers(1, 40), last=st.integers(1, 3000))
def test_per_decade_is_due_at_the_powers(readings: int, last: int) -> None:
    """At ⌈10^(k/n)⌉ for each k, and at no other step: in integers, ceilings of roots are exact."""
    expected = set()
    for k in range(readings * 4):
        # The smallest step whose n-th power reaches 10^k.
        step = max(1, math.floor(10 ** (k / readings)) - 1)
        while step**readings < 10**k:
            step += 1
        expected.add(step)
    schedule = per_decade(readings)
    assert [step for step in range(1, last + 1) if schedule(step)] == sorted(step for step in expected if step <= last)


def test_per_decade_is_due_at_powers_of_ten_far_out() -> None:
    """Also where a float no longer distinguishes a step from the next by its logarithm alone."""
    schedule = per_decade(7)
    assert [schedule(10**9 + offset) for offset in (-1, 0, 1)] == [False, True, False]
    assert not schedule(0)


def test_schedules_are_joined() -> None:
    """By numbers, functions and each other."""
    schedule = union(at(2), every(5), lambda step: step == 7)
    assert [step for step in range(1, 11) if schedule(step)] == [2, 5, 7, 10]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (per_decade, [0], r"per_decade\(\) takes the readings to a decade of steps, 1 or more; got 0"),
        (at, [3, 2.5], r"at\(\) takes steps, 1 or more; got 2.5"),
        (union, [every(2), lambda: True], r"every= as a function takes the step and says whether to read"),
    ],
    ids=["per_decade", "at", "union"],
)
def test_wrong_schedules_are_refused(make: Any, arguments: list[Any], message: str) -> None:
    """At construction."""
    with pytest.raises(InputError, match=message):
        make(*arguments)


def test_a_number_becomes_a_schedule() -> None:
    """`every=3` is due at step 3 and not at step 4."""
    schedule = as_schedule(3)
    assert (schedule(3), schedule(4)) == (True, False)


def test_a_schedule_of_the_users_own_is_taken_as_it_is() -> None:
    """A function of the step is not wrapped."""

    def powers_of_two(step: int) -> bool:
        return step.bit_count() == 1

    assert as_schedule(powers_of_two) is powers_of_two


@pytest.mark.parametrize(
    "schedule",
    [every(5), per_decade(10), at(3, 1), union(per_decade(10), every(1000)), union(at(7), union(2, 9))],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_are_copied_pickled_and_compared(schedule: Schedule) -> None:
    """So that what holds one can be sent to another process; and what is equal hashes alike."""
    for again in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):  # noqa: S301 -- our own
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert [again(step) for step in range(1, 50)] == [schedule(step) for step in range(1, 50)]
    assert schedule != every(17)


def test_a_schedule_is_shown_as_it_is_made() -> None:
    """In a message, or a configuration that is printed."""
    assert repr(union(per_decade(10), every(1000), at(8, 1))) == "union(per_decade(10), every(1000), at(1, 8))"


def test_whole_numbers_of_numpy_are_numbers_of_steps() -> None:
    """And are kept as ints, which JSON can hold."""
    assert every(np.int64(2)) == every(2)  # type: ignore[arg-type]
    assert at(np.int32(3)) == at(3)  # type: ignore[arg-type]
    assert "np" not in repr(union(np.int64(2), per_decade(np.int64(3))))  # type: ignore[arg-type]
