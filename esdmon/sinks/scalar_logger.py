"""A sink for loggers that take numbers by name."""

from collections.abc import Callable
from typing import final

from esdmon.present.scalars import Namespace, scalars
from esdmon.records import Alert, Report


@final
class ScalarLoggerSink:
    """A sink for a logger that takes numbers by name: `log(numbers, step)`, with the tags of `esdmon.present.scalars`.

    Args:
        log: takes the numbers and the step.
        flush: has the logger write what it holds.
        place: the logger, which two monitors that write to it do not share tags in.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], object],
        flush: Callable[[], object] = int,
        *,
        place: object = None,
    ) -> None:
        self._log = log
        self._flush = flush
        self._names = Namespace(self if place is None else place, f"this {type(place).__name__}")

    def write(self, report: Report) -> None:
        """Log a reading in one call."""
        self._log(self._names.all(scalars(report)), report.x)

    def alert(self, alert: Alert) -> None:
        """Do nothing: such loggers have no place for words. The log has them."""

    def flush(self) -> None:
        """Have the logger write what it holds."""
        self._flush()

    def close(self) -> None:
        """Have the logger write what it holds; the host closes it."""
        self._names.free()
        self._flush()
