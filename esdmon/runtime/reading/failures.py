"""Define `FailingReadings`, which records failed readings as faults of the monitor."""

from typing import final

from esdmon.isolation import Faults

_NAMED = 3  # layers that one kind of error is reported for by name; our choice


@final
class FailingReadings:
    """Record failed readings as faults: three layers of each kind of error by name, the others as one.

    What fails for one layer often fails for all, and two hundred log lines say no more than four.

    Args:
        faults: of all parts of the monitor.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._named: dict[str, set[str]] = {}
        """By kind of error: the layers that are reported by name."""
        self._failing: dict[str, str] = {}
        """By layer whose last reading failed: the fault that it is part of."""

    def failed(self, name: str, step: int, error: Exception) -> None:
        """Record that the reading of a matrix has raised."""
        kind = type(error).__name__
        named = self._named.setdefault(kind, set())
        if len(named) < _NAMED:
            named.add(name)
        who = self._failing[name] = f"reading {name}" if name in named else f"reading more layers ({kind})"
        self._faults.record(who, step, error, pauses=False)

    def worked(self, name: str, step: int) -> None:
        """Record that a reading has given numbers, or a reason why there are none."""
        who = self._failing.pop(name, None)
        if who is not None and who not in self._failing.values():
            self._faults.worked(who, step)
