"""Records to TensorBoard's event files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from esdmon.errors import InputError, MissingExtraError, unwritable
from esdmon.picture import Showing, draw_esd
from esdmon.tags import scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from esdmon import Alert, LayerReport, Report

_log = logging.getLogger("esdmon")
_PICTURES = 24  # layers that are drawn at the end: each costs 65 ms and 27 kB
_RANGES = 12  # layers with a chart of their own in the tab of custom scalars


@final
class TensorBoardSink:
    """Writes through a `SummaryWriter`: its own by `open(folder)`, or the user's, which it then leaves open.

    Tags are those of `esdmon.tags`. All of a reading go into one event: a sixth of the time of an event for each.
    """

    def __init__(self, writer: SummaryWriter, *, close: bool = False) -> None:
        self._writer = writer
        self._close = close
        self._showing = Showing()
        self._report: Report | None = None

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
        if self._close and not Path(self._writer.log_dir).is_dir():  # what is written to deleted files is nowhere
            _log.warning("esdmon: %s was deleted: what it held is lost, and it is begun anew.", self._writer.log_dir)
            self._reopen()
        if self._report is None and self._close:  # a folder has one layout: in the user's it is the user's
            self._writer.add_custom_scalars(_layout(report))
        self._report = report
        self._write_scalars(scalars(report), report.x)
        for layer in self._showing.histograms(report):
            self._write_histogram(layer, report.x)
        for layer in self._showing.changed(report):
            self._write_picture(layer, report.x)
        self._writer.flush()

    def alert(self, alert: Alert) -> None:
        """The message as text, by rule and layer, and the picture of the layer; the summary has the scalar."""
        report = self._report
        x = alert.step if report is None else report.x
        text = f"**{alert.severity}, {alert.state}** {alert.message}"
        self._writer.add_text(f"esdmon_alert/{alert.rule}/{alert.layer or 'model'}", text, x)
        if report is not None and alert.layer in report:
            self._write_picture(report[alert.layer], x)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop what lies in the folder after a step. In a writer of the user's that is the user's."""
        if self._close:
            self._reopen(purge_step=step + 1)

    def flush(self) -> None:
        """Flush the writer."""
        self._writer.flush()

    def close(self) -> None:
        """The table and the spectra as they are at the end; then close the writer if it is our own."""
        if self._report is not None:
            table = "\n".join(f"    {line}" for line in str(self._report).splitlines())
            self._writer.add_text("esdmon_report", table, self._report.x)
            for layer in self._report.layers[:_PICTURES]:
                self._write_picture(layer, self._report.x)
        if self._close:
            self._writer.close()
        else:
            self._writer.flush()

    def _reopen(self, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- optional

        folder = self._writer.log_dir
        with suppress(OSError):  # it may be gone
            self._writer.close()
        self._writer = SummaryWriter(folder, **options)

    def _write_histogram(self, layer: LayerReport, step: int) -> None:
        esd = layer.esd
        if esd is None:
            return
        middles = [(a + b) / 2 for a, b in pairwise(esd.edges)]
        self._writer.add_histogram_raw(
            f"esdmon_esd/{layer.name}",
            min=esd.low,
            max=esd.high,
            num=sum(esd.counts),
            sum=sum(m * n for m, n in zip(middles, esd.counts, strict=True)),
            sum_squares=sum(m * m * n for m, n in zip(middles, esd.counts, strict=True)),
            bucket_limits=esd.edges[1:],
            bucket_counts=list(esd.counts),
            global_step=step,
        )

    def _write_picture(self, layer: LayerReport, step: int) -> None:
        if layer.esd is not None and find_spec("matplotlib") is not None:
            self._writer.add_image(f"esdmon_picture/{layer.name}", draw_esd(layer), step, dataformats="HWC")

    def _write_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        files: Any = getattr(self._writer, "file_writer", None)
        if not hasattr(files, "add_summary"):  # a writer of another kind, tensorboardX's say
            for tag, value in numbers.items():
                self._writer.add_scalar(tag, value, step)
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 -- optional

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        files.add_summary(Summary(value=values), step)


def _layout(report: Report) -> dict[str, dict[str, list[Any]]]:
    """For the tab of custom scalars: each quantity of all layers in one chart, and alpha in its range for the first."""
    names = [layer.name for layer in report] + list(report.waiting)
    together = ("alpha", "phase", "mp_soft_rank", "stable_rank", "n_spikes")
    ranges = {
        name: ["Margin", [f"esdmon_{which}/{name}" for which in ("alpha", "alpha_low", "alpha_high")]]
        for name in names[:_RANGES]
    }
    return {
        "all layers": {which: ["Multiline", [f"esdmon_{which}/.*"]] for which in together},
        "alpha, and the range of fits nearly as good": ranges,
    }
