"""Define `FailingReadings`, which records failed readings as faults of the monitor."""

from typing import final

from esdmon.isolation import Faults

_NAMED = 3  # layers per kind of error that are reported by name; our choice


@final
class FailingReadings:
    """Record failed readings as faults: for each kind of error three layers by name, the others as one fault.

    An error in one layer often occurs in all layers, and two hundred log lines have no more information than four.

    Args:
        faults: of all parts of the monitor.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._named: dict[str, set[str]] = {}
        """For each kind of error, the layers that are reported by name."""
        self._failing: dict[str, str] = {}
        """For each layer whose last reading failed, the name of its fault."""

    def failed(self, name: str, step: int, error: Exception) -> None:
        """Record that the reading of a matrix has raised."""
        kind = type(error).__name__
        named = self._named.setdefault(kind, set())
        if len(named) < _NAMED:
            named.add(name)
        who = self._failing[name] = f"reading {name}" if name in named else f"reading more layers ({kind})"
        self._faults.record(who, step, error, pauses=False)

    def worked(self, name: str, step: int) -> None:
        """Record that a reading has succeeded, with numbers or with a reason why there are none."""
        who = self._failing.pop(name, None)
        if who is not None and who not in self._failing.values():
            self._faults.worked(who, step)
