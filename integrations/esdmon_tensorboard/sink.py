"""Records to TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from esdmon.errors import InputError, MissingExtraError, unwritable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from esdmon import Alert, Report


@final
class TensorBoardSink:
    """Writes through a `SummaryWriter`: its own by `open(folder)`, or the user's, which it then leaves open.

    Tags are those of `Report.scalars`. All of a reading go into one event: a sixth of the time of an event for each.
    """

    def __init__(self, writer: SummaryWriter, *, close: bool = False) -> None:
        self._writer = writer
        self._close = close

    @classmethod
    def open(cls, folder: str) -> TensorBoardSink:
        """A sink with a writer of its own.

        Raises:
            MissingExtraError: without TensorBoard.
            InputError: without a folder, or with one that cannot be written.
        """
        if not folder:
            msg = "tensorboard needs a folder: 'tensorboard:runs/a'"
            raise InputError(msg)
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink tensorboard:DIR", "tensorboard", "tensorboard") from error
        try:
            path = Path(folder).expanduser()
            path.mkdir(parents=True, exist_ok=True)
            return cls(SummaryWriter(str(path)), close=True)
        except OSError as error:
            raise unwritable(f"tensorboard:{folder}", error) from error

    def write(self, report: Report) -> None:
        """A scalar for each measure and the phase of each layer, and for the summary of the model."""
        self._write_scalars(report.scalars(), report.x)
        self._writer.flush()

    def alert(self, alert: Alert) -> None:
        """The message as text, under the rule and the layer."""
        text = f"**{alert.severity}, {alert.state}** {alert.message}"
        self._writer.add_text(f"esdmon_alert/{alert.rule}/{alert.layer}", text, alert.step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop what lies in the folder after a step. In a writer of the user's that is the user's."""
        if self._close:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- optional

            folder = self._writer.log_dir
            self._writer.close()
            self._writer = SummaryWriter(folder, purge_step=step + 1)

    def flush(self) -> None:
        """Flush the writer."""
        self._writer.flush()

    def close(self) -> None:
        """Close the writer if it is our own."""
        if self._close:
            self._writer.close()
        else:
            self._writer.flush()

    def _write_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        files: Any = getattr(self._writer, "file_writer", None)
        if not hasattr(files, "add_summary"):  # a writer of another kind, tensorboardX's say
            for tag, value in numbers.items():
                self._writer.add_scalar(tag, value, step)
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 -- optional

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        files.add_summary(Summary(value=values), step)
