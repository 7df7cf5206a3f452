"""What rank 0 of a job knows of the others: how fast they read, and what they may."""

import pytest

from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.records import LayerReport
from esdmon.runtime.ranks.assignments import Assigned
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.ranks.holdings import Holdings, Listed, Table
from esdmon.runtime.ranks.membership import Membership
from esdmon.runtime.ranks.messages import Assignment, Plan
from esdmon.runtime.ranks.sharing import Reads
from esdmon.schedule.budget import Budget
from tests.benchmarks.sharded_scale import CountingStore, OnlyTells
from tests.clocks import FakeClock


class Run:
    """Two ranks, each with a weight of its own; rank 0 has no idle core."""

    def __init__(self, store: CountingStore | None = None) -> None:
        store = store or CountingStore()
        leader, self.other = Coordinator(store, 0, 2), Coordinator(store, 1, 2)
        self.faults = Faults()
        self.clock = FakeClock()
        self.budget = Budget(0.01, clock=self.clock.perf_counter, cpu_clock=lambda: 0.0, advance=0.0)
        self.job = DistributedJob(leader, OnlyTells(), self.faults, self.budget, limits=Limits())
        leader.announce(Table(0, "", {"a": Listed(1.0)}, {}))
        self.other.announce(Table(1, "", {"b": Listed(1.0)}, {}, copies=True, pauses=True))
        self.job.update_holdings()
        self.budget.start()

    def passes(self, seconds: float, at_most: float = 1e6) -> None:
        """Let a job train, and both ranks earn credit."""
        self.clock.passes(seconds)
        self.job.capacities.earn(self.budget.earn(at_most), at_most)

    def answers(self, step: int, seconds: float, pace: float) -> None:
        """Rank 1 has read its weight."""
        self.other.answer(step, {"b": (LayerReport("b", "ok", step), seconds)}, {}, pace)
        self.job._take(step, [1])

    def reads(self, under_way: float = 0.0) -> dict[int, Reads]:
        return self.job.capacities.reads({1: under_way}, ahead=0.0)


def test_each_rank_is_charged_what_it_has_read() -> None:
    """By rank 0, which plans for it: a rank that holds a weight alone must not read it beyond its own budget."""
    run = Run()
    run.passes(100)
    assert [reads.credit for reads in run.reads().values()] == pytest.approx([1.0, 1.0], abs=0.01)
    run.answers(1, seconds=3.0, pace=1.0)
    first, second = run.reads(under_way=0.5).values()
    assert first.credit == pytest.approx(1.0, abs=0.01)
    assert second.credit == pytest.approx(-2.5, abs=0.01)
    run.passes(300)
    assert run.reads()[1].credit == pytest.approx(1.0, abs=0.05)
    assert [reads.copies for reads in run.reads().values()] == [False, True]


def test_a_rank_reads_as_fast_as_it_has_answered() -> None:
    """Before that as fast as rank 0; on idle cores a reading costs as much less."""
    run = Run()
    run.passes(100)
    assert [reads.pace for reads in run.reads().values()] == [1.0, 1.0]
    run.answers(1, seconds=20.0, pace=200.0)
    second = run.reads()[1]
    assert second.pace == 200.0
    assert second.credit == pytest.approx(200 - 20, rel=0.02)
    assert run.job.membership.pauses


def test_what_a_rank_does_not_use_is_not_kept_for_ever() -> None:
    """Nor what it has used too much: as for rank 0."""
    run = Run()
    run.passes(1e6, at_most=5.0)
    assert run.reads()[1].credit == pytest.approx(5.0)
    run.answers(1, seconds=1e4, pace=1.0)
    run.passes(1.0, at_most=5.0)
    assert run.reads()[1].credit == pytest.approx(-5.0, abs=0.1)


class Twice(CountingStore):
    """A store at which a second thread looks who has closed while a first one does."""

    ranks: Coordinator | None = None

    def check(self, keys: list[str]) -> bool:
        ranks, self.ranks = self.ranks, None
        if ranks is not None:
            assert ranks.left() == {1}
        return super().check(keys)


def test_two_threads_look_who_has_closed() -> None:
    """A store waits for a key that is not there: for half an hour, in the step of the training."""
    store = Twice()
    leader = Coordinator(store, 0, 2)
    Coordinator(store, 1, 2).leave()
    store.ranks = leader
    assert leader.left() == {1}
    assert leader.left() == {1}


class Breaks(CountingStore):
    """A store that fails at some accesses to some keys."""

    broken = ""
    n_failures = 0

    def _fail(self, key: str) -> None:
        if self.broken and self.n_failures and key.startswith(self.broken):
            self.n_failures -= 1
            raise ConnectionError("the store cannot be reached")

    def get(self, key: str) -> bytes:
        self._fail(key)
        return super().get(key)

    def set(self, key: str, value: str | bytes) -> None:
        self._fail(key)
        super().set(key, value)


@pytest.mark.parametrize("broken", ["table/0", "table/1", "role/0", "role/1"])
def test_tables_that_could_not_be_joined_are_joined_at_the_next_due_step(broken: str) -> None:
    """They are announced once: the weights of a rank were not read in the rest of the run."""
    store = Breaks()
    run = Run(store)
    leader = Membership(Coordinator(store, 0, 2), lambda _: False)
    store.broken, store.n_failures = broken, 1
    with pytest.raises(ConnectionError, match="cannot be reached"):
        leader.update(1, is_due=True)
    assert leader.update(1, is_due=True)
    assert leader.known.tables.keys() == {0, 1}
    assert leader.known.holdings.matrices.keys() == {"a", "b"}
    assert run.other.role(leader.known.version) is not None
    assert not leader.update(1, is_due=True)


def test_tables_that_can_never_be_joined_are_given_up() -> None:
    """What is known without them is still read."""
    store = Breaks()
    Run(store)
    leader = Membership(Coordinator(store, 0, 2), lambda _: False)
    store.broken, store.n_failures = "role/1", 1000
    failed = []
    for step in range(10):
        try:
            assert not leader.update(1, is_due=True)
        except ConnectionError:
            failed.append(step)
    assert failed == [0, 1, 2, 3]


def test_answers_that_come_after_they_were_given_up_do_not_stay_in_the_store() -> None:
    """In a job whose ranks do not go step by step one may always be late."""
    store = CountingStore()
    run = Run(store)
    n_keys = []
    for step in range(1, 41):
        run.job.faults.begin(step, Plan(1, ()), {})
        run.job._take(step, [1])
        if step > 5:
            run.other.answer(step - 5, {}, {}, 1.0)
        n_keys.append(len(store.values))
    assert max(n_keys) == max(n_keys[:10])


def test_holders_that_no_plan_names_any_more_do_not_stay_in_the_store() -> None:
    """A rank that fails from time to time is paused and comes back: each makes a version of the holdings."""
    store = CountingStore()
    leader = Coordinator(store, 0, 2)
    n_keys = []
    for version in range(1, 101):
        for parameter in range(version, version + 3):
            leader.give_holders(version, f"{parameter % 32}", [])
        n_keys.append(len(store.values))
        assert leader.holders(max(1, version - 7), f"{max(1, version - 7) % 32}") == ()
    assert max(n_keys) == max(n_keys[:20])


@pytest.mark.parametrize("has_answered", [True, False])
def test_nobody_waits_for_a_rank_that_has_closed(*, has_answered: bool) -> None:
    """Nor is it blamed: its loop was shorter, or was broken off a step earlier. What it had sent is taken."""
    run = Run()
    assigned = Assigned(Plan(1, (Assignment(1, ("b",)),)), (), {})
    run.job.faults.begin(5, assigned.plan, {})
    task = run.job.others(5, assigned)
    assert task is not None
    assert task.poll() is None
    if has_answered:
        run.other.answer(5, {"b": (LayerReport("b", "ok", 5), 1.0)}, {}, 1.0)
    run.other.leave()
    run.job.membership.look_who_left()
    answer = task.poll()
    assert answer is not None
    assert list(answer) == ["b"] * has_answered
    assert list(run.faults) == []


def test_what_nobody_can_read_is_compared_once_at_a_due_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job of which a rank has died these may be all matrices: for each of 2000 that took 0.2 s of the training."""
    compared: list[int] = []

    class Missing(set[str]):
        def __and__(self, other: object) -> "Missing":
            compared.append(len(self))
            return self

    monkeypatch.setattr(Holdings, "missing", property(lambda _holdings: Missing("ab")))
    run = Run()
    assert [sorted(run.job.unreadable(step)) for step in (1, 2)] == [[], ["a", "b"]]
    assert compared == [2]
