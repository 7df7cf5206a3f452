"""`Notes`: what a monitor logs once about how it is used."""

import logging
import os
from typing import final

_log = logging.getLogger("esdmon")


@final
class Notes:
    """Log what a monitor was not used for: each sentence once.

    Args:
        no_step: the remedy where no step was counted.
    """

    def __init__(self, no_step: str) -> None:
        self._no_step = no_step
        self._process = os.getpid()
        self._logged: set[str] = set()

    @property
    def is_forked(self) -> bool:
        """Return whether this process was forked from the one that made the monitor."""
        return os.getpid() != self._process

    def check_process(self) -> bool:
        """Return whether the monitor can be used in this process; log it where it cannot."""
        if self.is_forked:
            self._warn_once(
                "the monitor is inactive in this process, which was forked from the one that called watch(): its steps "
                "are not counted. Call watch() in the process that trains."
            )
        return not self.is_forked

    def ignored_step(self) -> None:
        """Log that the loop counts steps which the optimizer's hook counts."""
        self._warn_once(
            "monitor.step() is ignored, since watch() was given the optimizer and counts its steps. Leave out one of "
            "the two."
        )

    def nothing_read(self, steps: int) -> None:
        """Log that a run has ended without a reading."""
        if steps:
            self._warn_once(f"nothing was read in {steps} steps, since none was due: lower every=.")
        else:
            self._warn_once(f"nothing was read, since no step was counted: {self._no_step}.")

    def _warn_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            _log.warning("esdmon: %s", text)
