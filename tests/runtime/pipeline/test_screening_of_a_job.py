"""Which matrices the ranks of a job screen, and what that may cost."""

import math
from collections.abc import Collection
from typing import Any

import pytest

from esdmon.records import LayerReport, Screened
from esdmon.runtime.pipeline import screening
from esdmon.runtime.ranks.norms import JobScreening
from esdmon.schedule import priority
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority
from tests.clocks import FakeClock


class DistributedJob:
    """Ranks that hold the parts of some matrices; each norm takes so many seconds of the hook on the slowest rank."""

    def __init__(self, clock: FakeClock, seconds: float, *sharded: str) -> None:
        self.clock = clock
        self.seconds = seconds
        self.own_share = 1.0
        """Seconds of rank 0 as a share of those of the slowest rank."""
        self.sharded = sharded
        self.planned: Collection[str] = ()
        self.sent: list[JobScreening] = []

    def may_screen(self, name: str) -> bool:
        return name in self.sharded

    def screen(self, step: int) -> tuple[Collection[str], float]:
        seconds = self.seconds * len(self.planned)
        self.clock.passes(self.own_share * seconds)
        if self.planned:
            self.sent.append(JobScreening(step, self.planned, (), seconds, self.own_share * seconds))
        return self.planned, 0.0

    def screened(self) -> list[JobScreening]:
        found, self.sent = self.sent, []
        return found


class Elsewhere:
    """Rank 0 holds nothing alone."""

    def whole(self, _name: str) -> str:
        return ""

    def screened(self) -> list[Screened]:
        return []


class Watched:
    """Rank 0 of a job that was trained for so many seconds, and its matrices, all of them read at step 10."""

    def __init__(
        self, *names: str, seconds: float, seconds_of_a_norm: float, seconds_of_a_reading: float = 1.0
    ) -> None:
        clock = FakeClock()
        self.budget = budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0)
        budget.start()
        self.turns = ReadPriority(dict.fromkeys(names, seconds_of_a_reading))
        for name in names:
            self.turns.begun(name, 10)
            self.turns.took(name, seconds_of_a_reading)
            self.turns.drifted(name, 20, 0.0, trainable=True)
        for _ in range(priority.RARE):
            self.turns.pass_by()
        job: Any = DistributedJob(clock, seconds_of_a_norm, *names)
        self.job = job
        elsewhere: Any = Elsewhere()
        self.screening = screening.Screening(elsewhere, self.turns, elsewhere, budget, job)
        clock.passes(seconds)

    def due(self, step: int, **latest: LayerReport) -> list[str]:
        """Take a due step, and return what is planned for the next."""
        self.screening.screen_together(self.job, step)
        self.job.planned = self.screening.ahead(self.job, ())
        self.screening.screen(step, without=(), latest=latest)
        return list(self.job.planned)


def test_norms_take_a_part_of_the_budget() -> None:
    """One is tried until its cost is known; then as many as a quarter of the budget allows, the oldest first."""
    run = Watched("a", "b", "c", "d", seconds=1000, seconds_of_a_norm=1.0)
    assert [run.due(step) for step in (20, 30, 40, 50)] == [["a"], ["b"], ["c"], []]
    run = Watched("a", "b", "c", "d", seconds=1000, seconds_of_a_norm=0.05)
    assert [run.due(step) for step in (20, 30, 40)] == [["a"], ["b"], ["c", "d", "a", "b"]]


@pytest.mark.parametrize("own_share", [0.0, 0.4, 1.0])
def test_the_slowest_rank_counts(own_share: float) -> None:
    """The others wait for it, so that its seconds are lost by all; they are known one due step later."""
    run = Watched("a", "b", "c", "d", seconds=1000, seconds_of_a_norm=1.0)
    run.job.own_share = own_share
    assert [run.due(step) for step in (20, 30, 40, 50)] == [["a"], ["b"], ["c"], []]
    assert run.budget.spent == pytest.approx(3 * (1 - own_share))  # the rest is charged with the monitor's hook


def test_norms_of_other_matrices_and_of_small_ones_are_not_computed() -> None:
    run = Watched("a", "b", seconds=1000, seconds_of_a_norm=0.02, seconds_of_a_reading=0.1)
    run.job.sharded = ("b",)
    assert [run.due(step) for step in (20, 30, 40, 50)] == [["b"], ["b"], [], []]


@pytest.mark.parametrize("norm", [5.0, math.nan])
def test_a_change_in_the_part_of_another_rank_brings_the_reading_forward(norm: float) -> None:
    """Rank 0 sees by itself only how far its own part has moved."""
    run = Watched("V", "W", seconds=1000, seconds_of_a_norm=0.01)
    latest = {name: LayerReport(name, "ok", 10, measures={"frobenius_norm": 4.0}, N=20) for name in "VW"}
    run.turns.drifted("V", 30, 1e-2, trainable=True)
    assert run.turns.choose(30, 1.0) == ["V"]
    run.job.sent = [JobScreening(20, ["W"], (Screened("W", 30, norm, math.nan, math.nan, N=20),), 0.01, 0.01)]
    run.due(30, **latest)
    assert run.turns.choose(30, 1.0) == ["W"]


def test_each_screened_matrix_is_looked_up_and_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each report: with 5000 matrices a search for each took a fifth of a second of the training."""
    run = Watched("V", "W", seconds=1000, seconds_of_a_norm=0.01)
    found = tuple(Screened(name, 20, 5.0, math.nan, math.nan, N=20) for name in ("V", "gone"))
    run.job.sent = [JobScreening(20, ["V", "gone"], found, 0.01, 0.01)]
    with monkeypatch.context() as patched:
        patched.delattr(ReadPriority, "names")
        assert [each.name for each in run.screening.as_of(20, {})] == ["V"]
