"""What is done about an alert, besides telling it to the log and the sinks."""

from collections.abc import Callable
from dataclasses import dataclass

from esdmon.records import Alert


@dataclass(frozen=True, slots=True)
class Actions:
    """What is asked of the run, and who is called."""

    stop_on: frozenset[str] = frozenset()
    """Names of rules: one that fires asks the host to end the training."""
    save_on: frozenset[str] = frozenset()
    """Names of rules: one that fires asks the host to save a checkpoint."""
    calls: tuple[tuple[str, Callable[[Alert], object]], ...] = ()
    """(name, function), each called with every alert that begins, grows or ends."""
    asks_to_stop: Callable[[Alert], bool] | None = None
    """Asked at each alert besides: the plugins."""
