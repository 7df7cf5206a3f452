"""Schedules: pure functions of the step."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.errors import InputError
from esdmon.schedule import as_schedule, every


@given(interval=st.integers(1, 1000), steps=st.integers(0, 2000))
def test_every_is_due_once_in_each_interval(interval: int, steps: int) -> None:
    """Among the first n steps, n // interval are due, and the first of them is the interval itself."""
    due = [step for step in range(1, steps + 1) if every(interval)(step)]
    assert len(due) == steps // interval
    assert due[:1] == ([interval] if interval <= steps else [])


@pytest.mark.parametrize("interval", [0, -1, 2.0, True, "200", None], ids=repr)
def test_every_refuses_what_is_no_number_of_steps(interval: Any) -> None:
    """The message names the argument and shows what was got."""
    with pytest.raises(InputError, match=rf"every= is a number of steps, 1 or more, .*got {interval!r}"):
        every(interval)


def test_a_number_becomes_a_schedule() -> None:
    """`every=3` is due at step 3 and not at step 4."""
    schedule = as_schedule(3)
    assert (schedule(3), schedule(4)) == (True, False)


def test_a_schedule_of_the_users_own_is_taken_as_it_is() -> None:
    """A function of the step is not wrapped."""

    def powers_of_two(step: int) -> bool:
        return step.bit_count() == 1

    assert as_schedule(powers_of_two) is powers_of_two
