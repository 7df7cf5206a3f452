"""Define `Sink`, the protocol of a destination of records."""

from typing import Protocol, runtime_checkable

from esdmon.records import Alert, Report


@runtime_checkable
class Sink(Protocol):
    """A destination of reports and alerts. It depends on neither tensors nor monitors.

    Methods are called from one thread, in the order of steps. An exception is isolated: training and the other sinks
    continue.

    Five more methods are optional:

    - `start(run: str)`: called before the first write with the id of the run, 8 hexadecimal digits. It is called again
      if the state of another run is loaded; this other run is then continued.
    - `rewind(step: int)`: called if the run is resumed at a step. Remove all data that this run wrote after the step;
      it will be written again.
    - `resume(course: Timeline)`: called after `rewind`, with the phases of each layer and the alerts up to that step,
      for a sink that shows the history of the run; see `esdmon.records.timeline`.
    - `catch_up() -> bool`: do one piece of deferred work, such as drawing a picture, and return True if there is more.
      Called between reports, at most once per step, and only within the budget.
    - `where() -> str`: return a path, address or command to view the written data, or an empty text. It is shown in the
      summary at the end of a run, and may be called after `close`.
    """

    def write(self, report: Report) -> None:
        """Write one report."""

    def alert(self, alert: Alert) -> None:
        """Write an alert that has begun, grown or ended."""

    def flush(self) -> None:
        """Make all written data visible to readers."""

    def close(self) -> None:
        """Flush, and release all resources. Called once."""


def missing_method(sink: object) -> str | None:
    """Return the name of the first method that an object lacks to be a sink; None for a sink."""
    names = ("write", "alert", "flush", "close")
    return next((name for name in names if not callable(getattr(sink, name, None))), None)
