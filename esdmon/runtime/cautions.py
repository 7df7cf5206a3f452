"""`Cautions`: count the readings that a run does not have, and log what the user can do about it."""

import logging
from typing import final

from esdmon.schedule.budget import Budget

_log = logging.getLogger("esdmon")


@final
class Cautions:
    """Log once that readings are skipped, or cost more than the budget."""

    def __init__(self) -> None:
        self.count = 0
        """Readings that were due and were skipped or lost."""
        self._is_over_budget = False

    def skip(self, step: int, count: int) -> None:
        """Count readings that were not begun, since there was no room for them."""
        if count and not self.count:
            _log.warning(
                "esdmon: skipped %d readings at step %d because the queue is full: increase every=, or, where no core "
                "is idle, use mode='sync'. Logged once; see monitor.dropped.",
                count,
                step,
            )
        self.count += count

    def log_since(self, before: int, step: int) -> None:
        """Log how many readings of a step were given up since there were `before` losses."""
        if self.count > before:
            _log.warning(
                "esdmon: %d readings of step %d were not finished in time and are lost, see monitor.dropped.",
                self.count - before,
                step,
            )

    def check(self, budget: Budget) -> None:
        """Log once that a budget is exceeded even by one reading at each due step."""
        if not self._is_over_budget and budget.is_exceeded:
            self._is_over_budget = True
            _log.warning(
                "esdmon: reading one matrix at each due step takes %.1f %% of the run, more than budget=%g: increase "
                "every=.",
                100 * budget.overhead,
                budget.share,
            )
