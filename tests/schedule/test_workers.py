"""Threads that are steered by what the steps lose: in simulated runs, whose clock is a number."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from scipy import stats

from esdmon.schedule import slow_down
from esdmon.schedule.slow_down import Comparison
from esdmon.schedule.workers import MOST_ENDING, Workers, blocks_to_end, steps_paused
from tests.clocks import FakeClock

BUDGET = 0.01


@dataclass
class Outcome:
    """A simulated run."""

    lost: float
    """Share of the run."""
    charged: float
    """The same by the count of `Workers`."""
    threads: float
    """Of all steps, the mean."""
    stopped: float
    """Share of the steps in which no thread may read."""
    at_end: int


def run(
    slower: Callable[[int, int], float],
    *,
    seed: int,
    cap: Callable[[int], int] = lambda _step: 8,
    steps: int = 6000,
    scatter: float = 0.01,
    lasting: float = 0.6,
    is_pending: Callable[[int], bool] = lambda _step: True,
    pause: Callable[[int], float] = lambda _step: 0.0,
) -> Outcome:
    """Train, with steps of about a second, autocorrelated, with outliers, that `slower` says how threads slow down.

    A part of the scatter lasts from step to step; all of it would never change.
    """
    draw, noise, clock = random.Random(seed), 0.0, FakeClock()  # noqa: S311 -- a simulation
    at = 0
    workers = Workers(BUDGET, lambda _own: cap(at), clock=clock.perf_counter)
    lost = charged = total = threads = credit = queued = stopped = 0.0
    for at in range(steps):
        reading = 0
        if at % 50 == 0 and queued <= 0:  # a due step
            queued, credit = credit, 0.0
        if is_pending(at) and not workers.is_paused and queued >= 0:
            reading = workers.count or int(at % 100 == 0)  # without idle cores a share of the run, as the budget
        noise = lasting * noise + (1 - lasting**2) ** 0.5 * draw.gauss(0, 1)
        step = 1 + scatter * noise + (draw.expovariate(3) if draw.random() < 0.02 else 0)
        slow = step * slower(reading, at)
        clock.passes(step + slow + pause(at))
        credit = min(credit + workers.rate * (step + slow), 400.0)
        queued -= reading * (step + slow)
        lost, total, threads = lost + slow, total + step + slow, threads + reading
        charged += workers.step(is_busy=reading > 0)
        stopped += not workers.count
    return Outcome(lost / total, charged / total, threads / steps, stopped / steps, workers.count)


CASES: dict[str, tuple[Callable[[int, int], float], float, float]] = {
    "free": (lambda _threads, _step: 0.0, 4, 8),
    "0.1 % a thread": (lambda threads, _step: 0.001 * threads, 3, 8),
    "0.5 % a thread": (lambda threads, _step: 0.005 * threads, 0.5, 3),
    "3 % a thread": (lambda threads, _step: 0.03 * threads, 0, 0.5),
    "free up to 4, then 2 % each": (lambda threads, _step: 0.02 * max(0, threads - 4), 1.5, 5),
    "free, then 3 % a thread": (lambda threads, step: 0.03 * threads if step > 3000 else 0.0, 1, 5),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("scatter", [0.005, 0.02])
def test_steps_lose_no_more_than_the_budget(case: str, scatter: float) -> None:
    """And idle cores are used."""
    slower, least, most = CASES[case]
    runs = [run(slower, seed=seed, scatter=scatter) for seed in range(5)]
    # A change that makes steps slower by a quarter is seen after some 15 blocks.
    assert max(each.lost for each in runs) <= BUDGET * (2 if case == "free, then 3 % a thread" else 1.15)
    if case != "free, then 3 % a thread":  # where it changes it is known late
        assert all(abs(each.charged - each.lost) < BUDGET / 2 for each in runs)
    assert least <= sum(each.threads for each in runs) / len(runs) <= most


@pytest.mark.parametrize("lasting", [0.98, 0.995])
@pytest.mark.parametrize("scatter", [0.05, 0.1])
def test_a_noisy_host_stops_no_thread(scatter: float, lasting: float) -> None:
    """Where the time of a step wanders by 5 or 10 % for some 50 or 200 steps, as on a host that others use too."""
    runs = [run(lambda _threads, _step: 0.0, seed=seed, scatter=scatter, lasting=lasting) for seed in range(8)]
    assert sum(each.stopped for each in runs) / len(runs) < 0.02
    assert all(each.charged < BUDGET for each in runs)
    runs = [
        run(lambda threads, _step: 0.03 * threads, seed=seed, scatter=scatter, lasting=lasting) for seed in range(8)
    ]
    assert sum(each.lost for each in runs) / len(runs) <= BUDGET


@pytest.mark.parametrize("shift", [0, 7])
@pytest.mark.parametrize("every", [50, 200])
def test_pauses_of_the_host_stop_no_thread(every: int, shift: int) -> None:
    """A validation, or a checkpoint, comes at the steps at which readings are due."""
    found = run(
        lambda _threads, _step: 0.0,
        seed=0,
        is_pending=lambda step: (step + shift) % every < 5,
        pause=lambda step: 30.0 if (step + shift) % every == 0 else 0.0,
    )
    assert found.stopped == 0
    assert found.charged < 2e-3


@pytest.mark.parametrize("free", [2000, 20000])
def test_a_stop_ends(free: int) -> None:
    """However long threads have read before steps became slower."""
    found = run(lambda _threads, step: 0.5 if free < step < free + 1000 else 0.0, seed=0, steps=free + 20000)
    assert found.stopped * (free + 20000) < 17000
    assert found.at_end > 0


def test_threads_that_may_not_read_are_no_idle_cores() -> None:
    """As where other programs take all cores: what this process's readings have used counts as idle."""
    clock, idle = FakeClock(), [10]
    workers = Workers(BUDGET, lambda own: int((idle[0] + own) / 2), clock=clock.perf_counter)
    counts = []
    for step in range(12000):
        idle[0] = 10 - min(workers.count, 5) if step < 6000 else 0
        clock.passes(1)
        workers.step(is_busy=workers.count > 0 and not workers.is_paused)
        counts.append(workers.count)
    assert max(counts) == 5
    assert counts[-1] == 0


def test_a_steady_drift_is_not_taken_for_a_slow_down() -> None:
    """As where a processor clocks down while it gets warm."""
    comparison = Comparison()
    for block in range(100):
        seconds = 1 + 0.002 * block
        comparison.add(seconds, 0.0 if block % 4 == 3 else 1.0)
    assert comparison.slow_down is not None
    assert abs(comparison.slow_down.share) < 1e-4


def test_a_drift_between_rare_readings_is_left_out() -> None:
    comparison = Comparison()
    for block in range(1200):
        comparison.add(1 + 0.0005 * block, 1.0 if block % 60 == 0 else 0.0)
    assert comparison.slow_down is not None
    assert abs(comparison.slow_down.share) < 1e-3


def test_without_idle_cores_no_thread_is_free() -> None:
    assert run(lambda _threads, _step: 0.0, seed=0, cap=lambda _step: 0).at_end == 0


def test_cores_that_are_taken_are_given_back_within_a_block() -> None:
    """As where another process starts on the host."""
    found = run(lambda _threads, _step: 0.0, seed=0, cap=lambda step: 8 if step < 3000 else 2)
    assert found.at_end == 2


@pytest.mark.parametrize("each", [0.05, 0.2, 0.5])
def test_readings_that_are_shorter_than_a_block_are_measured(each: float) -> None:
    """As those of small matrices beside steps of a millisecond, which wait for the interpreter's lock meanwhile."""
    found = run(lambda threads, _step: each * threads, seed=0, is_pending=lambda step: step % 20 < 4, steps=20000)
    assert found.lost < 1.3 * BUDGET
    assert found.charged > 0.4 * found.lost  # what was lost before it was known is not charged


def test_readings_in_a_small_part_of_a_block_leave_the_slow_down_open() -> None:
    found = run(lambda threads, _step: 0.005 * threads, seed=0, is_pending=lambda step: step % 20 == 0)
    assert (found.at_end, found.charged) == (1, 0.0)


def test_quantiles_are_those_of_the_laws() -> None:
    """Of the normal law, and of Student's with 1 to 19 degrees of freedom."""
    for outside, table in ((0.005, slow_down._UNLIKELY), (0.15, slow_down._LIKELY)):
        assert table.normal == pytest.approx(stats.norm.isf(outside), abs=1e-3)
        assert table.student == pytest.approx([stats.t.isf(outside, k) for k in range(1, 20)], abs=5e-3)


def test_the_interval_holds_the_slow_down() -> None:
    """In some 995 and 850 of 1000 cases, also where the share of a block in which threads read varies."""
    draw = random.Random(0)  # noqa: S311 -- a simulation
    inside = [0, 0]
    for _ in range(1000):
        shares = [draw.choice([0.2, 0.5, 1.0]) for _ in range(8)]
        found = [slow_down._Compared(0.1 * share + draw.gauss(0, 0.02), share) for share in shares]
        inside[0] += slow_down._interval(found, slow_down._UNLIKELY)[0] <= 0.1
        inside[1] += slow_down._interval(found, slow_down._LIKELY)[1] >= 0.1
    assert inside[0] > 985
    assert 780 < inside[1] < 900


def test_while_the_training_waits_nothing_is_paused() -> None:
    """Else readings that `close` waits for would never begin."""
    clock = FakeClock()
    workers = Workers(BUDGET, lambda _own: 1, clock=clock.perf_counter)
    for _ in range(200):
        clock.passes(1)
        workers.step(is_busy=not workers.is_paused)
        if workers.is_paused:
            break
    assert workers.is_paused
    workers.wait()
    assert not workers.is_paused


def test_it_is_tried_again_after_a_while() -> None:
    """What has slowed the steps may be over."""
    found = run(lambda threads, step: 0.05 * threads if step < 1500 else 0.0, seed=0, steps=8000)
    assert found.at_end >= 4


def run_ranks(
    each: float, *, with_ranks: bool, ranks: int = 8, steps: int = 16000, longest: int = 1, idle: int = 4
) -> tuple[float, list[int]]:
    """Train on several ranks, whose every step is slower by `each` for each thread of any.

    Args:
        each: share of a step.
        with_ranks: whether ranks stand still together.
        ranks: of the job; the last has no idle core.
        steps: of the training.
        longest: steps that a reading takes at most.
        idle: threads that idle cores allow.

    Returns:
        The share of the run that was lost to readings on idle cores, and the threads of each rank at the end.
    """
    draw, clock = random.Random(ranks), FakeClock()  # noqa: S311 -- a simulation
    caps = [idle] * (ranks - 1) + [0]
    team = [
        Workers(BUDGET, lambda _own, cap=cap: cap, with_ranks=with_ranks, clock=clock.perf_counter)  # type: ignore[misc]
        for cap in caps
    ]
    running: list[list[int]] = [[] for _ in team]
    credit = [0.0] * ranks
    lost = total = 0.0
    for at in range(steps):
        for rank, workers in enumerate(team):
            workers.ending = blocks_to_end(longest, 1.0)
            running[rank] = [left - 1 for left in running[rank] if left > 1]
            # A rank may have nothing to read for a while.
            may_read = not workers.is_paused and (rank + at // 300) % 4 != 0 and credit[rank] >= 0
            allowed = workers.count if may_read else 0
            if not allowed and not workers.is_paused and draw.random() < 1.5 * BUDGET / longest:
                allowed = 1  # charged in full
            while len(running[rank]) < allowed:
                running[rank].append(draw.randint(max(1, longest // 3), longest))
        slow = each * sum(map(len, running))
        seconds = 1 + 0.01 * draw.gauss(0, 1) + slow
        clock.passes(seconds)
        lost, total = lost + slow, total + seconds
        for rank, workers in enumerate(team):
            credit[rank] = min(credit[rank] + (workers.rate - len(running[rank])) * seconds, 300.0)
        for workers, own in zip(team, running, strict=True):
            workers.step(is_busy=bool(own))
    return lost / total, [workers.count for workers in team]


@pytest.mark.parametrize("longest", [1, 30, 60, 150])
@pytest.mark.parametrize("each", [0.0002, 0.001, 0.0025, 0.01])
def test_the_ranks_of_a_job_lose_no_more_than_one_budget_together(each: float, longest: int) -> None:
    """Though each of them controls its own threads, and none knows of the others; also where readings take long."""
    lost, threads = run_ranks(each, with_ranks=True, longest=longest)
    # Where one thread on each rank costs more than the whole budget, trying costs some of it.
    assert lost <= BUDGET * (1 if each < 0.01 else 1.2)
    if each == 0.0002:  # 28 threads cost less than the budget
        assert sum(threads) > 20


def test_ranks_that_stood_still_each_for_itself_would_lose_more() -> None:
    """Of what all of them cost each would see its own part."""
    assert run_ranks(0.001, with_ranks=False)[0] > 1.3 * BUDGET


def test_readings_end_within_so_many_blocks() -> None:
    assert [blocks_to_end(seconds, 1.0) for seconds in (0.0, 20.0, 20.5, 1e4)] == [1, 1, 2, MOST_ENDING]
    assert blocks_to_end(5.0, 0.0) == 1
    assert [steps_paused(ending) for ending in (0, 1, 3)] == [0, 60, 100]


def test_a_wait_of_one_rank_does_not_shift_its_blocks() -> None:
    """As where rank 0 alone flushes or saves."""
    clock = FakeClock()
    team = [Workers(BUDGET, lambda _own: 4, with_ranks=True, clock=clock.perf_counter) for _ in range(2)]
    stood: list[list[int]] = [[], []]
    for at in range(1000):
        clock.passes(1)
        for rank, workers in enumerate(team):
            workers.step(is_busy=not workers.is_paused)
            stood[rank] += [at] * workers.is_paused
        if at == 333:
            team[0].wait()
    assert stood[0] == stood[1]
    assert len(stood[0]) > 150


def test_a_step_that_waits_for_a_device_is_not_compared() -> None:
    """Else blocks without threads would seem slow, and threads would seem to cost nothing."""
    clock = FakeClock()
    workers = Workers(BUDGET, lambda _own: 1, clock=clock.perf_counter)
    for step in range(2000):
        is_busy = not workers.is_paused
        waits = not is_busy and step % 2 == 0
        clock.passes(1.0 + 0.05 * is_busy + 5.0 * waits)
        if waits:
            workers.drop()
        workers.step(is_busy=is_busy)
    assert workers.slow_down is None
