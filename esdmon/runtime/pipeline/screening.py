"""Define `Screening`, which computes norms of rarely read matrices at each due step, with a part of the budget."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from esdmon.records import LayerReport, Screened
from esdmon.runtime.pipeline.drift_log import DriftLog
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.workers.source import Source
from esdmon.schedule.budget import Budget, Cost
from esdmon.schedule.priority import ReadPriority

SHARE = 0.25
"""Largest part of the budget for screening. Our choice."""
WORTH = 10
"""A matrix is screened if its reading takes at least this many times as long as its screening. Our choice."""


@final
class Screening:
    """Screen the matrices that were not read for some due steps, the least recently known first.

    The cost is measured since this process began or continued the run; that of a job is the cost of its slowest rank,
    for which the others wait. If it exceeds a quarter of the budget, the remaining matrices wait for the next due step.

    Args:
        source: the matrices of this process.
        priority: chooses the matrices to screen, and records changes of λmax.
        drift: returns the matrices that this process holds.
        budget: measures the cost; the caller charges it.
        job: the ranks of the job, which screen the matrices that this one does not hold; None for a single process.
    """

    def __init__(
        self, source: Source, priority: ReadPriority, drift: DriftLog, budget: Budget, job: DistributedJob | None
    ) -> None:
        self._source = source
        self._priority = priority
        self._drift = drift
        self._budget = budget
        self._job = job
        self._since = budget.run_seconds
        self._spent = 0.0
        self._costs: dict[str, float] = {}
        """Smallest seconds of a screening of each matrix so far."""
        self._mean = math.inf
        """Seconds of each matrix that the ranks screened last; infinite at first, so that one is tried."""
        self._expected: dict[int, float] = {}
        """Expected seconds of the slowest rank beyond this one's, by due step whose norms are on their way."""
        self._names: dict[str, str] = {}
        """Names in the job of the matrices of this process that were screened, by their names in its model."""
        self._found: dict[str, list[Screened]] = {}
        """For each matrix the last reported screening, and the ones that wait for the reports of their steps."""

    def screen(self, step: int, *, without: Collection[str], latest: Mapping[str, LayerReport]) -> None:
        """Begin to screen matrices within the allowance.

        Args:
            step: optimizer steps taken.
            without: the matrices that are read at this step.
            latest: the last readings.
        """
        with self._counting():
            self._take(latest)
            names = self._priority.to_screen(without)
        for name in names:
            if self._spent > self._allowance:
                break
            self._begin(name, step)
        with self._counting():
            self._take(latest)

    def screen_together(self, job: DistributedJob, step: int) -> None:
        """Begin, on all ranks, to compute the norms that `ahead` has planned at the previous due step."""
        with self._counting() as cost:
            names, beside = job.screen(step)
        if not names:
            return
        self._note(names, step, beside)
        expected = sum(self._costs.get(name, self._mean) for name in names)
        self._expected[step] = max(0.0, expected - cost.seconds - beside) if math.isfinite(expected) else 0.0
        self._spent += self._expected[step]

    def ahead(self, job: DistributedJob, without: Collection[str]) -> list[str]:
        """Return matrices that the ranks screen at the next due step, within the current allowance.

        Args:
            job: the ranks of the job.
            without: the matrices that are read at that step.
        """
        left = self._allowance - self._spent
        chosen: list[str] = []
        for name in self._priority.to_screen(without, in_part=True):
            if left < 0:
                break
            if job.may_screen(name) and self._is_worth(name):
                chosen.append(name)
                left -= self._costs.get(name, self._mean)
        return chosen

    def _is_worth(self, name: str) -> bool:
        return self._priority.expected(name) >= WORTH * self._costs.get(name, 0.0)

    def _begin(self, name: str, step: int) -> None:
        """Begin to screen a matrix, if that is cheap enough compared with a reading."""
        own = self._drift.whole(name)
        if not (own and self._is_worth(name)):
            return
        with self._counting() as cost:
            beside = self._source.screen(own, step)
        if beside is not None:
            self._names[own] = name
            self._note([name], step, beside)
            self._learn([name], cost.seconds + beside)

    def _note(self, names: Collection[str], step: int, beside: float) -> None:
        """Record screenings that have begun, and charge their seconds on an accelerator."""
        self._spend(beside)
        for name in names:
            self._priority.screened(name, step)

    @contextmanager
    def _counting(self) -> Iterator[Cost]:
        """Count the cost of a block of the hook, which the caller charges to the budget."""
        with self._budget.measured() as cost:
            yield cost
        self._spent += cost.seconds

    def _spend(self, seconds: float) -> None:
        """Charge seconds that the hook has not taken."""
        self._budget.spend(seconds)
        self._spent += seconds

    def _learn(self, names: Collection[str], cost: float) -> None:
        """Record the seconds of each of these screenings."""
        for name in names:
            self._costs[name] = min(cost, self._costs.get(name, math.inf))

    def as_of(self, step: int, latest: Mapping[str, LayerReport]) -> tuple[Screened, ...]:
        """Return the last screening of each matrix that is newer than its reading, as of a due step; new only once."""
        self._take(latest)
        shown: list[Screened] = []
        self._found = {name: found for name, found in self._found.items() if name in self._priority}
        for name, found in self._found.items():
            read = None if name not in latest else latest[name].step
            known = [each for each in found if each.step <= step and each.is_after(read)][-1:]
            shown += known
            later = [each for each in found if each.step > step]
            self._found[name] = [*(replace(each, is_new=False) for each in known), *later]
        return tuple(shown)

    @property
    def _allowance(self) -> float:
        return SHARE * (self._budget.share or 0.0) * (self._budget.run_seconds - self._since)

    def _take(self, latest: Mapping[str, LayerReport]) -> None:
        """Collect the finished screenings, and pass the changes of λmax to the priority."""
        for found in (*self._of_this_process(), *self._of_the_job()):
            layer = latest.get(found.name)
            if not math.isfinite(found.frobenius_norm):
                self._priority.screened(found.name, found.step, math.inf)
                continue
            now = found
            if layer is not None and layer.status == "ok":
                now = replace(found, N=layer.N)
                self._priority.screened(found.name, found.step, _change(layer, now), since=layer.step)
            self._found.setdefault(found.name, []).append(now)

    def _of_this_process(self) -> Iterator[Screened]:
        """Yield the norms that have arrived from this process's devices, under the names of the job."""
        for found in self._source.screened():
            yield replace(found, name=self._names.get(found.name, found.name))

    def _of_the_job(self) -> Iterator[Screened]:
        """Yield the norms that the ranks have sent; charge the time by which the slowest of them exceeds this one's."""
        for screening in () if self._job is None else self._job.screened():
            self._spend(screening.seconds - screening.own)
            self._spent -= self._expected.get(screening.step, 0.0)
            self._expected = {step: seconds for step, seconds in self._expected.items() if step > screening.step}
            self._mean = screening.seconds / len(screening.names)
            self._learn(screening.names, self._mean)
            yield from screening.found


def _change(layer: LayerReport, now: Screened) -> float:
    """Return |Δ ln λmax| from a reading to a screening, minus the residual of the latter; 0 if it is not known.

    For a sharded matrix, return |Δ ln ‖W‖_F|, which to first order is at most ‖ΔW‖/‖W‖.
    """
    measure, error = ("frobenius_norm", 0.0) if math.isnan(now.spectral_norm) else ("lambda_max", now.residual)
    before, after = layer.measures.get(measure, math.nan), float(getattr(now, measure))
    return max(0.0, abs(math.log(after / before)) - error) if before > 0 and after > 0 else 0.0
