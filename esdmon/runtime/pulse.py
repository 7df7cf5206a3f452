"""`Escalation`: read between the scheduled steps what leaps there, and what an alert is waiting for.

What rank 0 of a job cannot read alone is read at a look: a step at which all ranks look into the job's store. Rank 0
asks for it some steps ahead, since other ranks may be ahead of it, and their devices behind.

`Pulse` samples all weights before and after single steps, and finds those that leap.
"""

import math
from collections.abc import Callable, Iterable
from typing import final

from esdmon.records import Alert, Report
from esdmon.records.serialization import Plain, known
from esdmon.runtime.source import Ranks, Sampled
from esdmon.schedule.attention import Attention
from esdmon.schedule.budget import Budget
from esdmon.schedule.leaps import Leaps
from esdmon.schedule.step_sample import StepSample

SHARE = 1e-3
"""Share of the run that the samples may take. Our choice."""
_ADVANCE = 0.02  # seconds that may be spent before they are earned


@final
class Pulse:
    """Take samples around one step in every `interval`, as far as a thousandth of the run allows.

    Args:
        source: the weights.
        budget: measures and is charged with the cost; without a limit there is none here either.
    """

    def __init__(self, source: Sampled, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._leaps = Leaps()
        self._begun: int | None = None
        self._last = -math.inf
        self._spent = self._cost = 0.0

    def end(self, step: int) -> list[str]:
        """Take the samples after a step, if those before it were taken; return the layers that leap."""
        if self._begun is None:
            return []
        begun, self._begun = self._begun, None
        with self._budget.spending(), self._budget.measured() as cost:
            if step == begun + 1:
                self._source.end_step_sample()
            samples = self._source.step_samples()
        self._charge(cost.seconds)
        return self._leaps.take(samples)

    def begin(self, step: int, interval: int | None, *, is_next: bool) -> None:
        """Take the samples before the next step, if it is read or the last were taken an interval ago."""
        is_time = interval is not None and step - self._last >= interval
        if not (is_next or is_time) or not self._has_allowance:
            return
        with self._budget.spending(), self._budget.measured() as cost:
            self._source.begin_step_sample()
        self._charge(cost.seconds)
        self._begun, self._last = step, step

    def state_dict(self) -> Plain:
        """Return the recent samples."""
        return {
            "begun": self._begun,
            "last": self._last,
            "leaps": self._leaps.state_dict(),
            "steps": self._source.step_state(),
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        state = known(state, ("begun", "last", "leaps", "steps"))
        begun, last = state["begun"], state["last"]
        steps = known(state["steps"], ("before", "last", "after", "start"))
        steps["before"] = dict(steps["before"])  # what is damaged fails here, before anything is changed
        steps["last"] = {
            name: list(StepSample(*each[: len(StepSample._fields)])) for name, each in steps["last"].items()
        }
        restore_leaps = self._leaps.prepare(state["leaps"])

        def restore() -> None:
            restore_leaps()
            self._begun, self._last = begun, last
            self._source.restore_steps(steps)

        return restore

    @property
    def _has_allowance(self) -> bool:
        budget = self._budget
        return budget.share is None or self._spent + 2 * self._cost <= SHARE * budget.run_seconds + _ADVANCE

    def _charge(self, seconds: float) -> None:
        self._spent += seconds
        self._cost = seconds


@final
class Escalation:
    """Choose the readings between scheduled steps: of layers that leap, and of those with an unconfirmed finding.

    Args:
        pulse: samples the weights.
        ranks: readings in which other ranks take part; None for a process that reads alone.
    """

    def __init__(self, pulse: Pulse, ranks: Ranks | None = None) -> None:
        self._pulse = pulse
        self._ranks = ranks
        self._here, self._elsewhere = Attention(), Attention()
        self._look: int | None = None
        """The last look for which anything was asked."""

    def due(self, step: int, *, is_scheduled: bool) -> tuple[str, ...]:
        """Return the layers to read at a step, by this process alone, besides the scheduled readings."""
        leaping = self._pulse.end(step)
        if is_scheduled:
            self._here.scheduled(step)
            self._elsewhere.scheduled(step)
            return ()
        for attention, names in self._divided(leaping):
            attention.bring_forward(names, step)
        return self._here.due(step)

    def sample(self, step: int) -> None:
        """Take samples before the next step, where it is time for them; ask for what is read at the next look."""
        if self._ranks is not None:
            self._ask(self._ranks, step)
        is_next = self._here.is_next(step + 1) or self._look == step + 1
        self._pulse.begin(step, self._here.interval, is_next=is_next)

    def _ask(self, ranks: Ranks, step: int) -> None:
        look, interval = ranks.next_look, self._elsewhere.interval
        if look is None or look == self._look or interval is None or look - step > max(1, interval // 2):
            return
        names = self._elsewhere.due(look)
        if names:
            self._look = look
            ranks.ask(names)

    def report(self, report: Report, pending: Iterable[Alert]) -> None:
        """Take note of the findings that are not confirmed after a report."""
        unsettled = {name for alert in pending if alert.severity != "info" for name in alert.layers}
        new = dict(self._divided(layer.name for layer in report.new))
        for attention, names in self._divided(unsettled):
            if not report.extra:
                attention.release([name for name in new[attention] if name not in unsettled])
            if not report.extra or new[attention]:
                attention.attend(names, report.step)

    def _divided(self, names: Iterable[str]) -> tuple[tuple[Attention, list[str]], tuple[Attention, list[str]]]:
        """Return the layers that this process reads alone, and the others, each with its attention."""
        here: list[str] = []
        elsewhere: list[str] = []
        for name in names:
            (elsewhere if self._ranks is not None and self._ranks.is_elsewhere(name) else here).append(name)
        return (self._here, here), (self._elsewhere, elsewhere)

    def state_dict(self) -> Plain:
        """Return the recent samples, and the layers that are read more often."""
        return {
            "pulse": self._pulse.state_dict(),
            "attention": self._here.state_dict(),
            "elsewhere": self._elsewhere.state_dict(),
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        state, none = known(state, ("pulse", "attention", "elsewhere")), Attention().state_dict()
        parts = (
            self._pulse.prepare(state["pulse"]),
            self._here.prepare(known(state["attention"], none)),
            self._elsewhere.prepare(known(state.get("elsewhere", none), none)),  # older states have none
        )

        def restore() -> None:
            self._look = None
            for part in parts:
                part()

        return restore
