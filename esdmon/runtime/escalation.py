"""Define `Escalation`, which requests readings between the scheduled steps: of layers that jump or may raise an alert.

Layers that rank 0 of a job cannot read alone are read at a poll, a step at which all ranks poll the job's store. Rank 0
requests these readings some steps ahead, since other ranks may be ahead of rank 0, and their devices behind.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol, final

from esdmon.records import Alert, Report
from esdmon.records.serialization import Plain, known
from esdmon.runtime.step_sampling import StepSampling
from esdmon.schedule.extra_readings import ExtraReadings


class Ranks(Protocol):
    """Readings between scheduled steps with other ranks, as implemented by `ReadingPipeline` on rank 0."""

    @property
    def next_poll(self) -> int | None:
        """Return the step of the next such reading; None if there is none before the next scheduled step."""

    def is_elsewhere(self, name: str) -> bool:
        """Return whether other ranks have to take part in a reading of a matrix."""

    def ask(self, names: Collection[str]) -> None:
        """Request readings of these matrices on all ranks at the next poll, as far as there is credit."""


@final
class Escalation:
    """Choose the readings between scheduled steps: of layers that jump, and of those with an unconfirmed finding.

    Args:
        sampling: samples the weights around single steps.
        ranks: readings in which other ranks take part; None for a process that reads alone.
    """

    def __init__(self, sampling: StepSampling, ranks: Ranks | None = None) -> None:
        self._sampling = sampling
        self._ranks = ranks
        self._here, self._elsewhere = ExtraReadings(), ExtraReadings()
        self._poll: int | None = None
        """The step of the last poll for which readings were requested."""
        self.next_step: float = 0
        """The first step at which `due` and `sample` have to be called, besides scheduled ones."""

    def due(self, step: int, *, is_scheduled: bool) -> tuple[str, ...]:
        """Return the layers to read at a step by this process alone; at a scheduled one, those to read first.

        Without this order, a finding would wait until all other layers were read if the budget allows no extra
        readings.
        """
        self.next_step = 0
        jumping = self._sampling.end(step)
        if is_scheduled:
            self._here.scheduled(step)
            self._elsewhere.scheduled(step)
            return (*self._here.unsettled, *self._elsewhere.unsettled)
        if jumping:
            for extra, names in self._divided(jumping):
                extra.bring_forward(names, step)
        return self._here.due(step)

    def sample(self, step: int) -> None:
        """Take samples before the next step if they are due, and request readings at the next poll."""
        if self._ranks is not None:
            self._ask(self._ranks, step)
        interval = self._here.interval
        is_next = self._here.is_next(step + 1) or self._poll == step + 1
        self._sampling.begin(step, interval, is_next=is_next)
        following = min(self._here.next_step(step), self._sampling.next_step(step, interval))
        self.next_step = following if self._ranks is None else step + 1  # requests are possible at any step

    def _ask(self, ranks: Ranks, step: int) -> None:
        poll, interval = ranks.next_poll, self._elsewhere.interval
        if poll is None or poll == self._poll or interval is None or poll - step > max(1, interval // 2):
            return
        names = self._elsewhere.due(poll)
        if names:
            self._poll = poll
            ranks.ask(names)

    def report(self, report: Report, pending: Iterable[Alert]) -> None:
        """Record the findings that are not confirmed after a report."""
        self.next_step = 0
        unsettled = {name for alert in pending if alert.severity != "info" for name in alert.layers}
        new = dict(self._divided(layer.name for layer in report.new))
        for extra, names in self._divided(unsettled):
            if not report.extra:
                extra.release([name for name in new[extra] if name not in unsettled])
            if not report.extra or new[extra]:
                extra.request(names, report.step)

    def _divided(self, names: Iterable[str]) -> tuple[tuple[ExtraReadings, list[str]], tuple[ExtraReadings, list[str]]]:
        """Return the layers that this process reads alone, and the others, each with its extra readings."""
        here: list[str] = []
        elsewhere: list[str] = []
        for name in names:
            (elsewhere if self._ranks is not None and self._ranks.is_elsewhere(name) else here).append(name)
        return (self._here, here), (self._elsewhere, elsewhere)

    def state_dict(self) -> Plain:
        """Return the recent samples, and the layers that are read more often."""
        return {
            "pulse": self._sampling.state_dict(),  # a name of earlier versions, whose states are read
            "attention": self._here.state_dict(),
            "elsewhere": self._elsewhere.state_dict(),
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        state, none = known(state, ("pulse", "attention", "elsewhere")), ExtraReadings().state_dict()
        parts = (
            self._sampling.prepare(state["pulse"]),
            self._here.prepare(known(state["attention"], none)),
            self._elsewhere.prepare(known(state.get("elsewhere", none), none)),  # older states have none
        )

        def restore() -> None:
            self._poll, self.next_step = None, 0
            for part in parts:
                part()

        return restore
