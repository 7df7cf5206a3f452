"""Records to TensorBoard's event files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, final

from esdmon.errors import MissingExtraError
from esdmon.present import Gallery, MediaSchedule, draw_esd, prepare
from esdmon.present.scalars import scalars, tag
from esdmon_tensorboard.values import Values, values_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from esdmon import Alert, LayerReport, Report
    from esdmon_tensorboard.events import RunFiles

_log = logging.getLogger("esdmon")
_AT_CLOSE = 24
"""Pictures that are drawn at the end, each of some 20 kB. Our choice."""
_PATIENCE = 2.0
"""Seconds after which no more of them is begun. Our choice."""


@final
class TensorBoardSink:
    """Writes event files of its own by `open(folder)`, or through a writer of the user's, which it leaves open.

    Tags are those of `esdmon.present.scalars`. All of a reading go into one event. Pictures are queued at a
    report and drawn one by one, by `catch_up`.

    Args:
        writer: torch's or tensorboardX's, or any with their methods; or event files of our own.
        clock: seconds, by which the pictures at the end are limited.
    """

    def __init__(self, writer: SummaryWriter | RunFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._output: UsersWriter | RunFiles = UsersWriter(writer) if hasattr(writer, "add_scalar") else writer
        self._clock = clock
        self._showing = MediaSchedule()
        self._gallery = Gallery()
        self._report: Report | None = None
        self._draws = prepare()

    @classmethod
    def open(cls, folder: str) -> Self:
        """Return a sink with event files of its own, the first of which is made when there is something to write.

        They lie in `folder`; where that holds event files of another run, in `run-2`, `run-3` … of it.

        Raises:
            MissingExtraError: without TensorBoard.
            InputError: without a folder, or with one that cannot be written.
        """
        try:
            from esdmon_tensorboard.events import RunFiles  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink tensorboard:DIR", "tensorboard", "tensorboard") from error
        return cls(RunFiles(folder))

    def start(self, run: str) -> None:
        """Take what is written from now on to be of the run with this id. A writer of the user's has no such id."""
        self._output.start(run)

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop what this run wrote after a step. In a writer of the user's that is the user's."""
        self._output.rewind(step)
        self._gallery.rewind(step)
        self._showing = MediaSchedule()

    def write(self, report: Report) -> None:
        """Write a scalar for each measure and the phase of each layer, and for the summary; queue what has changed."""
        values = self._output.values(report.step, report.x)
        if self._output.lacks_layout:
            values.layout(report)
            self._output.lacks_layout = False
        self._report = report
        values.numbers(scalars(report), self._showing.histograms(report), report.x)
        self._queue(self._showing.changed(report))
        self._output.flush()

    def alert(self, alert: Alert) -> None:
        """Write the message as text, by rule and layer, and queue the layers; the summary has the scalar."""
        report = self._report
        x = alert.step if report is None else report.x
        text = f"**{alert.severity}, {alert.state}** {alert.message}"
        values = self._output.values(alert.step, x)
        values.text(tag("alert", f"{alert.rule}/{alert.layer or 'model'}"), text, x)
        layers = {} if report is None else {layer.name: layer for layer in report}
        self._queue([layers[name] for name in dict.fromkeys((alert.layer, *alert.layers)) if name in layers])
        self._output.flush()

    def catch_up(self) -> bool:
        """Draw one of the layers that wait. Return whether more do."""
        self._draw_next()
        self._output.flush()
        return len(self._gallery) > 0

    def flush(self) -> None:
        """Flush the writer."""
        self._output.flush()

    def close(self) -> None:
        """Write the table and draw the layers as they are at the end, as many as two seconds allow; then close."""
        try:
            if self._report is not None:
                self._conclude(self._report)
        finally:
            self._output.close()

    def _queue(self, layers: list[LayerReport]) -> None:
        if self._draws:
            self._gallery.queue(layers)

    def _draw_next(self) -> None:
        layer = self._gallery.take()
        if layer is not None:
            x = layer.step if layer.host_step is None else layer.host_step
            self._output.values(layer.step, x).picture(tag("picture", layer.name), draw_esd(layer), x)

    def _conclude(self, report: Report) -> None:
        table = "\n".join(f"    {line}" for line in str(report).splitlines())
        self._output.values(report.step, report.x).text("esdmon_report", table, report.x)
        if self._draws:
            self._gallery.queue_last(report)
        start, waiting = self._clock(), len(self._gallery)
        for _ in range(min(waiting, _AT_CLOSE)):
            if self._clock() - start < _PATIENCE:
                self._draw_next()
        if self._gallery:
            _log.info(
                "esdmon: TensorBoard has no last picture of %d of %d layers: drawing is limited to %d and %g seconds.",
                len(self._gallery),
                waiting,
                _AT_CLOSE,
                _PATIENCE,
            )


@final
class UsersWriter:
    """A writer that is not ours: it is never opened, closed or rewound."""

    lacks_layout = False
    """A folder has one layout of the tab of custom scalars: here it is the user's."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def start(self, run: str) -> None:
        """Do nothing."""

    def rewind(self, step: int) -> None:
        """Do nothing."""

    def values(self, step: int, x: int) -> Values:  # noqa: ARG002 -- what files of our own ask for
        """Find the best way to write to it now."""
        return values_of(self._writer)

    def flush(self) -> None:
        """Flush it."""
        if hasattr(self._writer, "flush"):
            self._writer.flush()

    def close(self) -> None:
        """Flush it: it is not ours to close."""
        self.flush()
