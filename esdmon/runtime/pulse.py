"""`Escalation`: read between the scheduled steps what leaps there, and what an alert is waiting for.

`Pulse` samples all weights before and after single steps, and finds those that leap.
"""

import math
from collections.abc import Callable, Iterable
from typing import final

from esdmon.records import Alert, Report
from esdmon.records.serialization import Plain
from esdmon.runtime.source import Sampled
from esdmon.schedule.attention import Attention
from esdmon.schedule.budget import Budget
from esdmon.schedule.leaps import Leaps

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
        begun, last, steps = state["begun"], state["last"], state["steps"]
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
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._attention = Attention()

    def due(self, step: int, *, is_scheduled: bool) -> tuple[str, ...]:
        """Return the layers to read at a step besides the scheduled readings."""
        leaping = self._pulse.end(step)
        if is_scheduled:
            self._attention.scheduled(step)
            return ()
        self._attention.bring_forward(leaping, step)
        return self._attention.due(step)

    def sample(self, step: int) -> None:
        """Take samples before the next step, where it is time for them."""
        self._pulse.begin(step, self._attention.interval, is_next=self._attention.is_next(step + 1))

    def report(self, report: Report, pending: Iterable[Alert]) -> None:
        """Take note of the findings that are not confirmed after a report."""
        unsettled = {name for alert in pending if alert.severity != "info" for name in alert.layers}
        if not report.extra:
            self._attention.release([layer.name for layer in report.new if layer.name not in unsettled])
        self._attention.attend(unsettled, report.step)

    def state_dict(self) -> Plain:
        """Return the recent samples, and the layers that are read more often."""
        return {"pulse": self._pulse.state_dict(), "attention": self._attention.state_dict()}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        parts = self._pulse.prepare(state["pulse"]), self._attention.prepare(state["attention"])

        def restore() -> None:
            for part in parts:
                part()

        return restore
