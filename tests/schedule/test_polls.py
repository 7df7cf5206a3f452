"""The polls of a job between two scheduled steps."""

import pytest

from esdmon.schedule.polls import Polls, between


@pytest.mark.parametrize("ranks", [2, 400, 4096, 100_000])
@pytest.mark.parametrize("gap", [*range(1, 60), 200, 1999])
def test_there_are_few_and_fewer_in_a_large_job(gap: int, ranks: int) -> None:
    polls = between(gap, ranks)
    assert len(polls) <= 9
    assert len(polls) * ranks <= max(4096, ranks)
    assert all(0 < after < gap for after in polls)
    assert bool(polls) == (gap >= 10)


def test_each_is_taken_once() -> None:
    polls = Polls()
    assert (polls.next, polls.take(5)) == (None, None)
    polls.start(200, (20, 40, 60))
    assert polls.next == 220
    assert [step for step in range(201, 300) if polls.take(step)] == [220, 240, 260]
    assert polls.next is None


def test_a_step_that_counts_several_stands_for_the_last_that_it_passes() -> None:
    polls = Polls()
    polls.start(200, (20, 40, 60))
    assert [polls.take(step) for step in (216, 224, 264, 270)] == [None, 220, 260, None]
    polls.start(300, ())
    assert polls.take(400) is None
