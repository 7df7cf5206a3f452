"""Who reads what, where some ranks read faster than others and memory is bounded; and memory that threads share."""

import math
import threading
from collections import Counter
from contextlib import nullcontext

import pytest

from esdmon.runtime.ranks.holdings import Holdings, Listed, Part, Table, join
from esdmon.runtime.ranks.memory_limit import MemoryLimit
from esdmon.runtime.ranks.sharing import Reads, Sharing
from esdmon.schedule.fragments import Fragment

NAMES = [f"w{place}" for place in range(40)]
SECONDS = dict.fromkeys(NAMES, 1.0)


def whole(ranks: int, size: int = 100) -> Holdings:
    """All ranks hold the same, as under DDP."""
    return join(
        {rank: Table(rank, "", {name: Listed(1.0, (), "", size) for name in NAMES}, {}) for rank in range(ranks)}
    )


def halves() -> Holdings:
    """Two ranks hold a half of each, as under FSDP."""
    listed = {name: Listed(1.0, (f"{name}.weight",), "", 100) for name in NAMES}
    return join(
        {
            rank: Table(
                rank,
                f"host {rank}",
                listed,
                {f"{name}.weight": Part((10, 10), 4, Fragment((5 * rank, 0), (5, 10)), f"{rank}", 0) for name in NAMES},
            )
            for rank in range(2)
        }
    )


def reading(*paces: float, credit: float = math.inf, copies: bool = True) -> dict[int, Reads]:
    """Ranks that read at these paces, each reading takes a second."""
    return {rank: Reads(pace, credit, copies=copies) for rank, pace in enumerate(paces)}


def counts(sharing: Sharing, holdings: Holdings, ranks: dict[int, Reads], times: int = 1) -> Counter[int]:
    return Counter(assignment.owner for _ in range(times) for assignment in sharing.share(SECONDS, holdings, ranks))


def sharing_of(ranks: int, most_bytes: int = 1 << 20) -> Sharing:
    sharing = Sharing(most_bytes)
    sharing.keep(range(ranks))
    return sharing


@pytest.mark.parametrize("holdings", [whole(2), halves()], ids=["whole", "halves"])
def test_a_rank_that_reads_faster_is_given_more(holdings: Holdings) -> None:
    """And as much as the others soon after it reads as fast as they do."""
    sharing = sharing_of(2)
    assert counts(sharing, holdings, reading(1, 1)) == {0: 20, 1: 20}
    shared = counts(sharing, holdings, reading(1, 300), times=15)
    assert shared[1] == pytest.approx(598, abs=2)
    assert counts(sharing, holdings, reading(1, 1), times=2)[0] >= 39
    slow = counts(sharing, holdings, reading(300, 1), times=3)
    assert slow[0] == pytest.approx(120, abs=2)
    assert counts(sharing, holdings, reading(300, 300))[0] == pytest.approx(20, abs=1)


def test_a_rank_without_credit_is_given_nothing() -> None:
    """Nor what it alone could read, but one where nothing else is read."""
    first = Reads(1.0, 3.0)
    second = Reads(300.0, -1.0)
    assert counts(sharing_of(2), whole(2), {0: first, 1: second}) == {0: 3}
    only = join({1: Table(1, "", {name: Listed(1.0, (), "", 100) for name in NAMES}, {})})
    assignments = sharing_of(2).share(SECONDS, only, {0: first, 1: second})
    assert [(assignment.owner, assignment.names) for assignment in assignments] == [(1, ("w0",))]


def test_whole_copies_fit_into_the_memory_of_a_rank() -> None:
    """Of 400 bytes each: what is left out is planned again for the next due step."""
    for paces in ((100, 100, 50), (1, 1, 1)):
        assert counts(sharing_of(3, 1999), whole(3), reading(*paces)) == {0: 4, 1: 4, 2: 4}
        assert counts(sharing_of(3, 1999), whole(3, size=5000), reading(*paces)) == {0: 1, 1: 1, 2: 1}


def test_a_rank_that_finishes_each_reading_in_its_hook_needs_no_memory() -> None:
    assert sum(counts(sharing_of(2, 1999), whole(2), reading(1, 1, copies=False)).values()) == len(NAMES)


def test_a_new_rank_is_not_given_all_that_the_others_have_read_before() -> None:
    sharing = sharing_of(1)
    counts(sharing, whole(1), reading(1), times=10)
    sharing.keep([0, 1])
    assert counts(sharing, whole(2), reading(1, 1)) == {0: 20, 1: 20}


def test_threads_hold_no_more_than_the_limit_allows() -> None:
    """One that needs more waits until it is alone."""
    limit, most = MemoryLimit(100), 0
    seen = threading.Lock()
    alone = []

    def hold(size: int) -> None:
        nonlocal most
        for _ in range(50):
            with limit.holding(size, nullcontext):
                with seen:
                    most = max(most, limit.held_bytes)
                if size > 100:
                    alone.append(limit.held_bytes == size)

    threads = [threading.Thread(target=hold, args=(size,)) for size in (30, 40, 60, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert limit.held_bytes == 0
    assert limit.peak_bytes == most == 200
    assert alone == [True] * 50
