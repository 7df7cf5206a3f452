"""The looks of a job between two scheduled steps."""

import pytest

from esdmon.schedule.looks import Looks, between


@pytest.mark.parametrize("ranks", [2, 400, 4096, 100_000])
@pytest.mark.parametrize("gap", [*range(1, 60), 200, 1999])
def test_there_are_few_and_fewer_in_a_large_job(gap: int, ranks: int) -> None:
    looks = between(gap, ranks)
    assert len(looks) <= 9
    assert len(looks) * ranks <= max(4096, ranks)
    assert all(0 < after < gap for after in looks)
    assert bool(looks) == (gap >= 10)


def test_each_is_taken_once() -> None:
    looks = Looks()
    assert (looks.next, looks.take(5)) == (None, None)
    looks.start(200, (20, 40, 60))
    assert looks.next == 220
    assert [step for step in range(201, 300) if looks.take(step)] == [220, 240, 260]
    assert looks.next is None


def test_a_step_that_counts_several_stands_for_the_last_that_it_passes() -> None:
    looks = Looks()
    looks.start(200, (20, 40, 60))
    assert [looks.take(step) for step in (216, 224, 264, 270)] == [None, 220, 260, None]
    looks.start(300, ())
    assert looks.take(400) is None
