"""Define `Sink`, the protocol of a destination of records."""

from typing import Protocol, runtime_checkable

from esdmon.records import Alert, Report


@runtime_checkable
class Sink(Protocol):
    """A destination of reports and alerts. It knows neither tensors nor monitors.

    Methods are called from one thread, in the order of steps. An exception is isolated: training and the other sinks
    continue.

    Five more methods are optional:

    - `start(run: str)`: called before anything is written, with the id of the run, 8 hexadecimal digits; and again
      when the state of another run is loaded, which is then continued.
    - `rewind(step: int)`: the run is resumed at that step. Drop what this run wrote after it: it is written again.
    - `resume(course: Timeline)`: called after `rewind`, with the phases of each layer and the alerts up to that step,
      for a sink that shows the course of the run; see `esdmon.records.timeline`.
    - `catch_up() -> bool`: do one piece of deferred work, such as a picture, and return True if there is more. Called
      between reports, at most once a step, and only while the budget allows.
    - `where() -> str`: where to look at what was written, such as a command, or an empty text; part of the summary that
      ends a run. May be called after `close`.
    """

    def write(self, report: Report) -> None:
        """Write one report."""

    def alert(self, alert: Alert) -> None:
        """Write an alert that has begun, grown or ended."""

    def flush(self) -> None:
        """Make what was written visible to readers."""

    def close(self) -> None:
        """Flush, and release all resources. Called once."""
