"""Define `DroppedReadings`, which counts readings that were skipped or lost, and logs the remedy."""

import logging
from typing import final

from esdmon.records.text import count as counted
from esdmon.schedule.budget import Budget

_log = logging.getLogger("esdmon")

_OFTEN = 3  # costly due steps in a row: the first reading of one large matrix may exceed the budget of a short run


@final
class DroppedReadings:
    """Log once that readings are skipped, or cost more than the budget."""

    def __init__(self) -> None:
        self.count = 0
        """Readings that were due and were skipped or lost."""
        self._over = 0
        """Due steps in a row that took more than the share while the budget was exceeded."""
        self._last = 0.0, 0.0
        """Seconds spent, and of the run, at the last due step."""

    def skip(self, step: int, count: int) -> None:
        """Count readings that were not begun, since there was no room for them."""
        if count and not self.count:
            _log.warning(
                "esdmon: skipped %s at step %d because the queue is full: increase every=, or, where no core "
                "is idle, use mode='sync'. Logged once; see monitor.dropped.",
                counted(count, "reading"),
                step,
            )
        self.count += count

    def log_since(self, before: int, step: int) -> None:
        """Log how many readings of a step were given up since there were `before` losses."""
        if self.count > before:
            _log.warning(
                "esdmon: lost %s of step %d, not finished in time; see monitor.dropped.",
                counted(self.count - before, "reading"),
                step,
            )

    def check(self, budget: Budget) -> None:
        """Log once, at the third due step in a row, that even one reading at each exceeds a budget."""
        if self._over >= _OFTEN:
            return
        (spent, run), self._last = self._last, (budget.spent, budget.run_seconds)
        is_costly = budget.is_exceeded and budget.spent - spent > (budget.share or 0) * (budget.run_seconds - run)
        self._over = self._over + 1 if is_costly else 0
        if self._over == _OFTEN:
            _log.warning(
                "esdmon: monitoring has taken %.1f %% of the run so far (%.1f seconds), more than budget=%g. Only one "
                "matrix is read at each due step now, so faults are found later. Increase every=; for a small model, "
                "budget=None reads all matrices at each due step.",
                100 * budget.overhead,
                budget.spent,
                budget.share,
            )
