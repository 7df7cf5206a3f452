"""What a sink is: a place that records are written to. It knows no tensor and no monitor."""

from typing import Protocol, runtime_checkable

from esdmon.records import Alert, Report


@runtime_checkable
class Sink(Protocol):
    """Written to from one thread, in step order. What it raises is isolated: the run and the other sinks go on.

    One that has a method `rewind(step)` is told with it that a run was resumed at that step: it drops what was written
    after it by the run that was stopped, which is going to be written again.
    """

    def write(self, report: Report) -> None:
        """Take one reading."""

    def alert(self, alert: Alert) -> None:
        """Take an alert that has begun or ended."""

    def flush(self) -> None:
        """Let what was written be seen by others."""

    def close(self) -> None:
        """Flush, and free what is held. Called once."""
