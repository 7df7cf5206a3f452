"""What a sink is: a place that records are written to. It knows no tensor and no monitor."""

from typing import Protocol, runtime_checkable

from esdmon.records import Alert, Report


@runtime_checkable
class Sink(Protocol):
    """Written to from one thread, in step order. What it raises is isolated: the run and the other sinks go on."""

    def write(self, report: Report) -> None:
        """Take one reading."""

    def alert(self, alert: Alert) -> None:
        """Take an alert that has begun or ended."""

    def flush(self) -> None:
        """Let what was written be seen by others."""

    def close(self) -> None:
        """Flush, and free what is held. Called once."""
