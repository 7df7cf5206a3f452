"""Choose the steps between two scheduled ones at which all ranks of a job poll its store for an extra plan.

Layers that jump or have an unconfirmed finding are known only after the plan of a scheduled step was made, so they need
an extra plan. A poll is one request to the job's store by each rank at the same step. So there are few polls, and fewer
in a large job.
"""

from collections.abc import Sequence
from typing import final

from esdmon.schedule.extra_readings import READINGS_PER_INTERVAL

_MAX_POLLS = 4096
"""Largest number of polls of all ranks together between two scheduled steps. A store answers about 100 000 per second,
so this takes 40 ms. Our choice."""


def between(gap: int, ranks: int) -> tuple[int, ...]:
    """Return the distances of the polls from a scheduled step, if the next scheduled step is `gap` steps later.

    >>> between(200, 8)
    (20, 40, 60, 80, 100, 120, 140, 160, 180)
    >>> between(200, 1024)
    (50, 100, 150)
    >>> between(5, 8)
    ()
    """
    if gap < READINGS_PER_INTERVAL:
        return ()
    spacing = -(-gap // max(2, min(READINGS_PER_INTERVAL, _MAX_POLLS // ranks)))
    return tuple(range(spacing, gap, spacing))


@final
class Polls:
    """The steps of the remaining polls before the next scheduled step."""

    def __init__(self) -> None:
        self._left: list[int] = []

    def start(self, step: int, after: Sequence[int]) -> None:
        """Begin at a scheduled step, with polls at these numbers of steps after it."""
        self._left = [step + count for count in after]

    @property
    def next(self) -> int | None:
        """Return the step of the next poll; None if there is none before the next scheduled step."""
        return self._left[0] if self._left else None

    def take(self, step: int) -> int | None:
        """Return the planned step of the poll that is due at a step; None if none is due."""
        reached = None
        while self._left and self._left[0] <= step:
            reached = self._left.pop(0)
        return reached
