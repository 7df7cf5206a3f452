"""Define `StepSampling`, which samples all weights before and after single steps, and finds weights that jump."""

import math
from collections.abc import Callable
from typing import Protocol, final

from esdmon.records.serialization import Plain, known
from esdmon.schedule.budget import Budget
from esdmon.schedule.jumps import JumpDetector
from esdmon.schedule.step_sample import StepSample

SHARE = 1e-3
"""Largest share of the run's time for the samples. Our choice."""
_ADVANCE = 0.02  # seconds that may be spent before they are earned
_TRIES = 4  # attempts in an interval, if the share is used up; our choice


class Sampler(Protocol):
    """Samples weights before and after single steps; `esdmon.weights.StepSampler` is one."""

    def begin(self) -> None:
        """Sample the weights before an optimizer step."""

    def end(self) -> None:
        """Sample the weights after the step."""

    def take(self) -> dict[str, StepSample]:
        """Return finished samples since the last call."""

    def state_dict(self) -> Plain:
        """Return the samples as plain data and tensors."""

    def load_state_dict(self, state: Plain) -> None:
        """Continue from a `state_dict()`."""


@final
class StepSampling:
    """Take samples around one step in every `interval`, as far as a thousandth of the run allows.

    Args:
        sampler: samples the weights.
        budget: measures and is charged with the cost; without a limit there is none here either.
    """

    def __init__(self, sampler: Sampler, budget: Budget) -> None:
        self._sampler = sampler
        self._budget = budget
        self._jumps = JumpDetector()
        self._begun: int | None = None
        self._last = self._next_try = -math.inf
        self._spent = self._cost = 0.0

    def end(self, step: int) -> list[str]:
        """Take the samples after a step, if samples before it were taken; return the layers that jump."""
        if self._begun is None:
            return []
        begun, self._begun = self._begun, None
        with self._budget.spending(), self._budget.measured() as cost:
            if step == begun + 1:
                self._sampler.end()
            samples = self._sampler.take()
        self._charge(cost.seconds)
        return self._jumps.take(samples)

    def begin(self, step: int, interval: int | None, *, is_next: bool) -> None:
        """Take the samples before the next step, if that step is read, or the last samples are an interval old."""
        is_time = interval is not None and step >= max(self._last + interval, self._next_try)
        if not (is_next or is_time):
            return
        if not self._has_allowance:
            self._next_try = step + max(1, (interval or 0) // _TRIES)
            return
        with self._budget.spending(), self._budget.measured() as cost:
            self._sampler.begin()
        self._charge(cost.seconds)
        self._begun, self._last = step, step

    def next_step(self, step: int, interval: int | None) -> float:
        """Return the first step after this one at which samples may be taken; ∞ if the interval is not known."""
        if self._begun is not None:
            return step + 1
        return math.inf if interval is None else max(step + 1, self._last + interval, self._next_try)

    def state_dict(self) -> Plain:
        """Return the recent samples."""
        return {
            "begun": self._begun,
            "last": self._last,
            "leaps": self._jumps.state_dict(),  # a name of earlier versions, whose states are read
            "steps": self._sampler.state_dict(),
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        state = known(state, ("begun", "last", "leaps", "steps"))
        begun, last = state["begun"], state["last"]
        steps = known(state["steps"], ("before", "last", "after", "start"))
        steps["before"] = dict(steps["before"])  # a damaged state raises here, before anything is changed
        steps["last"] = {
            name: list(StepSample(*each[: len(StepSample._fields)])) for name, each in steps["last"].items()
        }
        restore_jumps = self._jumps.prepare(state["leaps"])

        def restore() -> None:
            restore_jumps()
            self._begun, self._last, self._next_try = begun, last, -math.inf
            self._sampler.load_state_dict(steps)

        return restore

    @property
    def _has_allowance(self) -> bool:
        budget = self._budget
        return budget.share is None or self._spent + 2 * self._cost <= SHARE * budget.run_seconds + _ADVANCE

    def _charge(self, seconds: float) -> None:
        self._spent += seconds
        self._cost = seconds
