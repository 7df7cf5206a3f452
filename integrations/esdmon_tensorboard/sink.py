"""Write records to TensorBoard.

TensorBoard sorts its charts by tag. The most important data has tags that sort before all others of ours:
`esdmon/overview`, a picture of the phases of all layers, and `esdmon/alerts`, the alerts that fire now.
"""

from __future__ import annotations

import logging
import shlex
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from esdmon.calls import explain_wrong_calls
from esdmon.errors import MissingExtraError, is_address
from esdmon.notice import nearby
from esdmon.present import Media, Overview, draw_esd
from esdmon.present.overview import alert_text
from esdmon.present.scalars import scalars, tag
from esdmon.records import severity_word
from esdmon_tensorboard.outputs import Output, output_for
from esdmon_tensorboard.tensors import TensorLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from esdmon import Alert, Report
    from esdmon.records.timeline import Timeline
    from esdmon_tensorboard.events import RunFiles

_log = logging.getLogger("esdmon")
MAX_LAST_PICTURES = 24
"""Largest number of pictures that `close` draws, about 20 kB each. Our choice."""
LAST_PICTURES_SECONDS = 2.0
"""Seconds after which `close` begins no further picture. Our choice."""


@explain_wrong_calls
@final
class TensorBoardSink:
    """Write reports as scalars, histograms and pictures, and alerts as text.

    `TensorBoardSink.open(folder)` writes event files of its own; `TensorBoardSink(writer)` uses a writer of the user's,
    which stays open. Tags are those of `esdmon.present.scalars`. Pictures are queued by `write` and `alert`, and drawn
    one by one by `catch_up`, the overview of all layers first.

    Args:
        writer: a `SummaryWriter` of torch or tensorboardX, any object with their methods, or event files of our own.
        clock: returns seconds; limits the time that `close` spends on pictures.
    """

    def __init__(self, writer: SummaryWriter | RunFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._target: UsersWriter | RunFiles = UsersWriter(writer) if hasattr(writer, "add_scalar") else writer
        self._clock = clock
        self._media = Media()
        self._tensors = TensorLog()
        self._overview = Overview()
        self._drew_overview = False
        self._described: set[str] = set()
        self._report: Report | None = None

    @classmethod
    def open(cls, folder: str) -> Self:
        """Return a sink with event files of its own; the first is created when there is something to write.

        They are in `folder`, or in its subfolder `run-2`, `run-3` … if it contains event files of another run.

        Raises:
            MissingExtraError: without TensorBoard.
            InputError: without a folder, and for one that cannot be written.
        """
        try:
            from esdmon_tensorboard.events import RunFiles  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink tensorboard:DIR", "tensorboard", "tensorboard") from error
        return cls(RunFiles(folder))

    def start(self, run: str) -> None:
        """Use the event files of the run with this id; no effect on a writer of the user's."""
        self._target.start(run)

    def rewind(self, step: int) -> None:
        """Make TensorBoard drop what this run wrote after a step; no effect on a writer of the user's."""
        self._target.rewind(step)
        self._media.rewind(step)
        self._tensors.restart()
        self._overview.rewind(step)

    def resume(self, course: Timeline) -> None:
        """Continue the picture and the texts of the alerts of a run that another process may have begun."""
        self._overview.resume(course)

    def write(self, report: Report) -> None:
        """Write scalars and due histograms, and queue pictures of layers whose phase has changed."""
        self._take_target()
        output = self._target.output(report.step, report.x)
        if self._target.needs_layout:
            output.layout(report)
            self._tensors.restart()
            self._target.needs_layout = False
            self._described = set()
        if self._report is None:  # the tab of texts shows texts in the order in which they were written
            output.text("esdmon/alerts", alert_text(self._overview.timeline), report.x)
        self._report = report
        numbers, due = scalars(report, as_charts=True), self._media.histograms(report)
        output.numbers(numbers, due, report.x, new=numbers.keys() - self._described)
        self._described |= numbers.keys()
        output.tensors(self._tensors.reading(report, due), report.x)
        self._media.queue_changed(report)
        self._overview.take(report)
        self._target.flush()

    def alert(self, alert: Alert) -> None:
        """Write the message by rule and layer, and the firing alerts; queue pictures. The summary has the scalar."""
        self._take_target()
        report = self._report
        x = alert.step if report is None else report.x
        text = f"**{severity_word(alert.severity)}, {alert.state}** {alert.message}"
        self._overview.alert(alert)
        output = self._target.output(alert.step, x)
        output.text("esdmon/alerts", alert_text(self._overview.timeline), x)
        output.text(tag("alert", f"{alert.rule}/{alert.layer or 'model'}"), text, x)
        output.tensors(self._tensors.alert(alert, x), x)
        by_name = {} if report is None else {layer.name: layer for layer in report}
        names = dict.fromkeys((alert.layer, *alert.layers))
        self._media.queue_first([by_name[name] for name in names if name in by_name])
        self._target.flush()

    def catch_up(self) -> bool:
        """Draw the overview if it is due, or one picture of the queue, in turn. Return True if there are more."""
        if self._report is not None and self._overview.is_due and not (self._drew_overview and self._media):
            self._draw_overview(self._report)
        else:
            self._drew_overview = False
            self._draw_next()
        self._target.flush()
        return self._overview.is_due or len(self._media) > 0

    def where(self) -> str:
        """Return the command that shows the files."""
        folder = self._target.where()
        return f"`tensorboard --logdir {shlex.quote(folder)}`" if folder else ""

    def flush(self) -> None:
        """Flush the writer."""
        self._target.flush()

    def close(self) -> None:
        """Write the last table and last pictures, as many as two seconds allow, and close the files."""
        try:
            if self._report is not None:
                self._write_last(self._report)
        finally:
            self._target.close()

    def _take_target(self) -> None:
        if isinstance(self._target, UsersWriter):
            self._target = self._target.taken()

    def _draw_overview(self, report: Report) -> None:
        self._drew_overview = True
        self._target.output(report.step, report.x).picture("esdmon/overview", self._overview.draw(), report.x)

    def _draw_next(self) -> None:
        layer = self._media.take()
        if layer is not None:
            x = layer.step if layer.host_step is None else layer.host_step
            self._target.output(layer.step, x).picture(tag("picture", layer.name), draw_esd(layer), x)

    def _write_last(self, report: Report) -> None:
        table = "\n".join(f"    {line}" for line in str(report).splitlines())
        self._target.output(report.step, report.x).text("esdmon_report", table, report.x)
        self._overview.make_due()
        if self._overview.is_due:
            self._draw_overview(report)
        self._media.queue_last(report)
        start, waiting = self._clock(), len(self._media)
        for _ in range(min(waiting, MAX_LAST_PICTURES)):
            if self._clock() - start < LAST_PICTURES_SECONDS:
                self._draw_next()
        if self._media:
            _log.info(
                "esdmon: %d of %d layers have no last picture in TensorBoard: closing draws at most %d within %g s.",
                len(self._media),
                waiting,
                MAX_LAST_PICTURES,
                LAST_PICTURES_SECONDS,
            )


@final
class UsersWriter:
    """A writer that the user owns: it is never closed or rewound."""

    needs_layout = False
    """False, since a folder has one layout of the tab of custom scalars, which belongs to the user here."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self._run = ""
        self._rewound_to: int | None = None

    def start(self, run: str) -> None:
        """Keep the id of the run for `taken`; it does not change the writer's own files."""
        self._run = run

    def rewind(self, step: int) -> None:
        """Keep the step for `taken`; nothing in the user's files is removed."""
        self._rewound_to = step

    def taken(self) -> UsersWriter | RunFiles:
        """Return this writer; if another open sink writes to it, return separate event files in its folder.

        Two models of one job may have layers of the same names, whose readings would be mixed in one series.
        """
        folder = self._folder()
        is_free = all(other is self or other.writer is not self.writer for other in _taken)
        if is_free:
            _taken.add(self)
        if is_free or folder is None:
            return self
        from esdmon_tensorboard.events import RunFiles  # noqa: PLC0415 -- optional

        files = RunFiles(str(folder / "esdmon-2"))
        files.start(self._run)
        if self._rewound_to is not None:
            files.rewind(self._rewound_to)
        _log.warning(
            "esdmon: another monitor writes to this %s already: this one writes to a run of its own, in %s. To have "
            "one run, watch an nn.ModuleDict of both models with one monitor.",
            type(self.writer).__name__,
            files.where(),
        )
        return files

    def output(self, step: int, x: int) -> Output:  # noqa: ARG002 -- `RunFiles` needs both
        """Return the fastest way to write to this writer now."""
        return output_for(self.writer)

    def where(self) -> str:
        """Return the folder or its address, if the writer has that attribute."""
        folder = self._folder()
        return self._given() if folder is None else nearby(folder)

    def flush(self) -> None:
        """Flush the writer, if it has such a method."""
        if hasattr(self.writer, "flush"):
            self.writer.flush()

    def close(self) -> None:
        """Flush; the writer stays open, since its owner closes it."""
        _taken.discard(self)
        self.flush()

    def _folder(self) -> Path | None:
        """Return the folder; None for a writer without one, or that writes to an address such as `s3://bucket`."""
        folder = self._given()
        return None if not folder or is_address(folder) else Path(folder).absolute()

    def _given(self) -> str:
        folder = getattr(self.writer, "log_dir", None) or getattr(self.writer, "logdir", None)
        return str(folder) if isinstance(folder, str | Path) else ""


_taken: weakref.WeakSet[UsersWriter] = weakref.WeakSet()
"""The writers that open sinks write to."""
