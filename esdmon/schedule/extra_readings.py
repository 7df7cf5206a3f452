"""Choose the steps of extra readings of layers that may have a problem.

An alert needs a finding in several readings in a row, which takes hundreds of steps at the scheduled interval. So a
layer that has jumped, or has an unconfirmed finding, is read ten times as often until the finding is confirmed or gone.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

READINGS_PER_INTERVAL = 10
"""Number of extra readings between two scheduled steps. Our choice."""
MAX_EXTRA = 2 * READINGS_PER_INTERVAL
"""Largest number of consecutive extra readings of a layer. After them it waits for a scheduled reading without a
finding, so that an intermittent finding does not cause extra readings for ever. Our choice."""


@final
class ExtraReadings:
    """The layers that are read more often, and the step of their next extra reading."""

    def __init__(self) -> None:
        self._scheduled: int | None = None
        self._gap: int | None = None
        self._counts: dict[str, int] = {}
        """Extra readings so far of each layer that is read more often."""
        self._spent: set[str] = set()
        """Layers that have had the largest number of extra readings."""
        self._next = 0
        self.unsettled: tuple[str, ...] = ()
        """Layers with an unconfirmed finding in the last report."""

    def scheduled(self, step: int) -> None:
        """Record a scheduled step; the scheduled interval is the distance of the last two."""
        if self._scheduled is not None and step > self._scheduled:
            self._gap = step - self._scheduled
        self._scheduled = step

    @property
    def interval(self) -> int | None:
        """Return the steps between extra readings, a tenth of those between scheduled ones.

        None while that is not known, and if the scheduled interval is shorter than ten steps.
        """
        return None if self._gap is None or self._gap < READINGS_PER_INTERVAL else self._gap // READINGS_PER_INTERVAL

    def is_next(self, step: int) -> bool:
        """Return whether the next scheduled reading is expected at this step, or the next extra one is due."""
        if self._scheduled is not None and self._gap is not None and step == self._scheduled + self._gap:
            return True
        return bool(self._counts) and step == self._next

    def next_step(self, step: int) -> float:
        """Return the next step between scheduled steps at which there is work; ∞ if there is none.

        While a layer is read more often, this is the next step. Otherwise it is the last step before the next scheduled
        one, at which samples are taken.
        """
        if self._counts:
            return step + 1
        last = math.inf if self._scheduled is None or self._gap is None else self._scheduled + self._gap - 1
        return last if last > step else math.inf

    def request(self, names: Collection[str], step: int) -> None:
        """Read these layers more often from a step on, and no others."""
        self.unsettled = tuple(names)
        self._counts = {name: self._counts.get(name, 0) for name in names if name not in self._spent}
        self._next = step + (self.interval or 1)

    def bring_forward(self, names: Collection[str], step: int) -> None:
        """Read these layers at a step, in addition to layers that are already read more often."""
        fresh = [name for name in names if name not in self._spent and name not in self._counts]
        if fresh:
            self._counts |= dict.fromkeys(fresh, 0)
            self._next = step

    def release(self, names: Collection[str]) -> None:
        """Allow extra readings again for layers in which a scheduled reading has found nothing."""
        self._spent -= set(names)

    def due(self, step: int) -> tuple[str, ...]:
        """Return the layers to read at an unscheduled step, and count these readings."""
        interval = self.interval
        if not self._counts or step < self._next or interval is None:
            return ()
        self._next = step + interval
        names = tuple(self._counts)
        for name in names:
            self._counts[name] += 1
            if self._counts[name] >= MAX_EXTRA:
                self._spent.add(name)
        self._counts = {name: count for name, count in self._counts.items() if name not in self._spent}
        return names

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded steps and layers as plain data."""
        return {
            "scheduled": self._scheduled,
            "gap": self._gap,
            "counts": dict(self._counts),
            "spent": sorted(self._spent),
            "next": self._next,
            "unsettled": list(self.unsettled),
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        scheduled, gap, following = state["scheduled"], state["gap"], state["next"]
        counts, spent = dict(state["counts"]), set(state["spent"])
        unsettled = tuple(state.get("unsettled", ()))  # older states have none

        def restore() -> None:
            self._scheduled, self._gap, self._next = scheduled, gap, following
            self._counts, self._spent, self.unsettled = counts, spent, unsettled

        return restore
