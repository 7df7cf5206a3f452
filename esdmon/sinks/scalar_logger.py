"""A sink for loggers that accept numbers by name."""

from collections.abc import Callable
from typing import final

from esdmon.present.scalars import Namespace, scalars
from esdmon.records import Alert, Report


def _do_nothing() -> None:
    pass


@final
class ScalarLoggerSink:
    """Log the numbers of each report in one call, by the tags of `esdmon.present.scalars`.

    Args:
        log: called with the numbers by tag, and the step.
        flush: called to make the logger write what it has buffered.
        place: the logger; a second monitor that writes to the same one uses other tags. By default the sink itself.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], object],
        flush: Callable[[], object] = _do_nothing,
        *,
        place: object = None,
    ) -> None:
        self._log = log
        self._flush = flush
        self._namespace = Namespace(self if place is None else place, f"this {type(place).__name__}")

    def write(self, report: Report) -> None:
        """Log the numbers of a report in one call."""
        self._log(self._namespace.rename(scalars(report)), report.x)

    def alert(self, alert: Alert) -> None:
        """Do nothing: such loggers take no text. The message is in esdmon's log."""

    def flush(self) -> None:
        """Make the logger write what it has buffered."""
        self._flush()

    def close(self) -> None:
        """Flush; the logger stays open, since its owner closes it."""
        self._namespace.release()
        self._flush()
