"""Define what an alert may trigger besides its line in the log and its record in the sinks."""

from collections.abc import Callable
from dataclasses import dataclass

from esdmon.records import Alert


@dataclass(frozen=True, slots=True)
class Actions:
    """Requests to the training run and functions to call when an alert fires."""

    stop_on: frozenset[str] = frozenset()
    """Names of rules that ask the host to end the training when they fire."""
    save_on: frozenset[str] = frozenset()
    """Names of rules that ask the host to save a checkpoint when they fire."""
    calls: tuple[tuple[str, Callable[[Alert], object]], ...] = ()
    """(name, function) pairs; each function is called with every alert that begins, grows or ends."""
    asks_to_stop: Callable[[Alert], bool] | None = None
    """Called with each alert; True ends the training. This is how plugins ask for it."""

    @property
    def can_request(self) -> bool:
        """Return whether any alert may ask the training to stop or to save."""
        return bool(self.stop_on or self.save_on or self.asks_to_stop)
