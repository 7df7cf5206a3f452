"""What a sink is: a place that records are written to. It knows no tensor and no monitor."""

from typing import Protocol, runtime_checkable

from esdmon.records import Alert, Report


@runtime_checkable
class Sink(Protocol):
    """Take records, from one thread, in step order. What a sink raises is isolated: the run and other sinks go on.

    A sink may have three methods more, which are called where they exist:

    - `start(run: str)`: before anything is written, with the id of the run, 8 hexadecimal digits; and again where a
      state of another run is loaded, which then goes on.
    - `rewind(step: int)`: the run was resumed at that step. Drop what this run wrote after it: it is written again.
    - `catch_up() -> bool`: do one piece of deferred work, such as a picture, and return whether there is more. Called
      between reports, at most once a step, and only while the budget allows.
    """

    def write(self, report: Report) -> None:
        """Write one report."""

    def alert(self, alert: Alert) -> None:
        """Write an alert that has begun, grown or ended."""

    def flush(self) -> None:
        """Let what was written be seen by others."""

    def close(self) -> None:
        """Flush, and free what is held. Called once."""
