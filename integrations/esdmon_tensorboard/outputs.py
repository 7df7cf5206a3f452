"""Write values to TensorBoard: as events of many values, or by the methods of a `SummaryWriter`."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from esdmon.encoding import storable
from esdmon.present.scalars import tag
from esdmon.spectrum import Phase

if TYPE_CHECKING:
    from esdmon import LayerReport, Report

_MAX_RANGE_CHARTS = 12  # largest number of layers with a chart of alpha and its range in the tab of custom scalars
_PHASE_NAMES = ", ".join(f"{phase.code} {phase.value}" for phase in sorted(Phase, key=lambda phase: phase.code))
_DESCRIPTIONS = {
    "alpha": "Exponent of the power law of the tail, at readings where there is one that is not noise. Well trained: 2 "
    "to 6; below 2: over-regularised. The other readings are under `esdmon_alpha_noise`.",
    "alpha_noise": "The exponent that a fit gives where the tail cannot be distinguished from noise. It says nothing "
    "about training.",
    "phase": f"Phase of training: {_PHASE_NAMES}. Set the smoothing to 0: a smoothed phase is none of these.",
    "mp_soft_rank": "Edge of the bulk of noise / largest eigenvalue: 1 for noise, towards 0 as structure grows.",
    "stable_rank": "Sum of the eigenvalues / the largest.",
    "n_spikes": "Eigenvalues too large for noise: beyond the edge of its bulk, at a level of one in a thousand.",
}
_COLOURS = 128  # of a picture: a third of the bytes, without a visible difference
Picture = NDArray[np.uint8]
"""RGB values of shape (height, width, 3)."""


class Output(Protocol):
    """A way to write values to TensorBoard."""

    def layout(self, report: Report) -> None:
        """Write the charts of the tab of custom scalars."""

    def numbers(
        self, numbers: Mapping[str, float], layers: Iterable[LayerReport], step: int, *, new: Collection[str] = ()
    ) -> None:
        """Write numbers by tag, with descriptions of new tags, and the histograms of layers."""

    def tensors(self, values: Sequence[Any], step: int) -> None:
        """Write values of the tab ESD, in one event."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""


@final
class EventOutput:
    """Writes all numbers of a report in one event, in a tenth of the time of one event per number.

    Args:
        add_summary: called with a `Summary` and a step.
    """

    def __init__(self, add_summary: Callable[[Any, int], None]) -> None:
        self._add = add_summary

    def layout(self, report: Report) -> None:
        """Write the charts of the tab of custom scalars."""
        from torch.utils.tensorboard.summary import custom_scalars  # noqa: PLC0415 -- optional

        self._add(custom_scalars(_layout(report)), 0)  # type: ignore[no-untyped-call]

    def numbers(
        self, numbers: Mapping[str, float], layers: Iterable[LayerReport], step: int, *, new: Collection[str] = ()
    ) -> None:
        """Write numbers by tag, with descriptions of new tags, and the histograms of layers."""
        from tensorboard.compat.proto.summary_pb2 import (  # noqa: PLC0415 -- optional
            HistogramProto,
            Summary,
            SummaryMetadata,
        )

        scalars = SummaryMetadata.PluginData(plugin_name="scalars")
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        for value in values:
            text = _description(value.tag) if value.tag in new else ""
            if text:
                value.metadata.CopyFrom(SummaryMetadata(summary_description=text, plugin_data=scalars))
        for layer in layers:
            histo = HistogramProto(**_histogram(layer, limits="bucket_limit", counts="bucket"))
            values.append(Summary.Value(tag=tag("esd", layer.name), histo=histo))
        self._add(Summary(value=values), step)

    def tensors(self, values: Sequence[Any], step: int) -> None:
        """Write values of the tab ESD, in one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 -- optional

        self._add(Summary(value=values), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        from torch.utils.tensorboard.summary import text as text_summary  # noqa: PLC0415 -- optional

        self._add(text_summary(tag, storable(text)), step)  # type: ignore[no-untyped-call]

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        from PIL import Image  # noqa: PLC0415 -- comes with TensorBoard
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 -- optional

        file = io.BytesIO()
        Image.fromarray(picture).quantize(_COLOURS).save(file, format="PNG")
        height, width, channels = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


@final
class WriterOutput:
    """Writes through the methods that all kinds of writers have, such as tensorboardX's; skips missing methods."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def layout(self, report: Report) -> None:
        """Write the charts of the tab of custom scalars."""
        self._call("add_custom_scalars", _layout(report))

    def numbers(
        self,
        numbers: Mapping[str, float],
        layers: Iterable[LayerReport],
        step: int,
        *,
        new: Collection[str] = (),  # noqa: ARG002 -- not all writers accept descriptions
    ) -> None:
        """Write numbers by tag, and the histograms of layers."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        for layer in layers:
            histogram = _histogram(layer, limits="bucket_limits", counts="bucket_counts")
            self._call("add_histogram_raw", tag("esd", layer.name), **histogram, global_step=step)

    def tensors(self, values: Sequence[Any], step: int) -> None:
        """Do nothing: such writers have no method for tensors. The tab shows the data of the charts."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self._call("add_text", tag, storable(text), step)

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        self._call("add_image", tag, picture, step, dataformats="HWC")

    def _call(self, method: str, *arguments: object, **options: object) -> None:
        if hasattr(self._writer, method):
            getattr(self._writer, method)(*arguments, **options)


def output_for(writer: Any) -> Output:
    """Return the fastest way to write to a user's writer."""
    from torch.utils.tensorboard import FileWriter  # noqa: PLC0415 -- optional

    files = getattr(writer, "file_writer", None)  # None after the user has closed it, until the next write
    return EventOutput(files.add_summary) if isinstance(files, FileWriter) else WriterOutput(writer)


def _description(name: str) -> str:
    """Return the description of a tag in TensorBoard's tab of scalars, in Markdown; empty for most tags."""
    return _DESCRIPTIONS.get(name.partition("/")[0].removeprefix("esdmon_"), "")


def _histogram(layer: LayerReport, *, limits: str, counts: str) -> dict[str, Any]:
    """Return the histogram of log₁₀ λ in TensorBoard's terms.

    Args:
        layer: a layer with a histogram.
        limits: name of the field for the right borders of the bins.
        counts: name of the field for the number of eigenvalues in each bin.
    """
    esd = layer.esd
    if esd is None:
        raise ValueError(f"{layer.name} has no histogram")
    edges, numbers = np.asarray(esd.edges), np.asarray(esd.counts, dtype=float)
    middles = (edges[1:] + edges[:-1]) / 2
    return {
        "min": esd.low,
        "max": esd.high,
        "num": float(numbers.sum()),
        "sum": float(middles @ numbers),
        "sum_squares": float(middles**2 @ numbers),
        limits: edges[1:].tolist(),
        counts: numbers.tolist(),
    }


def _layout(report: Report) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the tab of custom scalars: measures of all layers, and alpha with its range."""
    charts = {
        f"phase: {_PHASE_NAMES}": "phase",
        "alpha, where there is a power law": "alpha",
        "alpha of fits to noise": "alpha_noise",
        **{name: name for name in ("mp_soft_rank", "stable_rank", "n_spikes")},
    }
    layout = {"all layers": {title: ["Multiline", [f"esdmon_{quantity}/.*"]] for title, quantity in charts.items()}}
    if report.max_tags is None:  # otherwise the range may have no series
        names = [*(layer.name for layer in report), *report.waiting][:_MAX_RANGE_CHARTS]
        layout["alpha, and the range of fits nearly as good"] = {
            name: ["Margin", [tag(which, name) for which in ("alpha", "alpha_low", "alpha_high")]] for name in names
        }
    return layout
