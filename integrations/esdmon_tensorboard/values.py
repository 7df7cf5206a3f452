"""What is shown, as TensorBoard's values: many in one event, or one by one through a writer's own methods."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from esdmon.present.scalars import tag

if TYPE_CHECKING:
    from esdmon import LayerReport, Report

_RANGES = 12  # layers with a chart of their own in the tab of custom scalars
Picture = NDArray[np.uint8]


class Values(Protocol):
    """Where values go."""

    def layout(self, report: Report) -> None:
        """Write which charts the tab of custom scalars has."""

    def numbers(self, numbers: Mapping[str, float], layers: Iterable[LayerReport], step: int) -> None:
        """Write numbers by tag, and the histograms of layers."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture: red, green and blue of (height, width)."""


@final
class InEvents:
    """All of a reading in one event, through `add_summary`: a tenth of the time of an event for each."""

    def __init__(self, add_summary: Callable[[Any, int], None]) -> None:
        self._add = add_summary

    def layout(self, report: Report) -> None:
        """Write which charts the tab of custom scalars has."""
        from torch.utils.tensorboard.summary import custom_scalars  # noqa: PLC0415 -- optional

        self._add(custom_scalars(_layout(report)), 0)  # type: ignore[no-untyped-call]

    def numbers(self, numbers: Mapping[str, float], layers: Iterable[LayerReport], step: int) -> None:
        """Write numbers by tag, and the histograms of layers."""
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # noqa: PLC0415 -- optional

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        for layer in layers:
            histo = HistogramProto(**_histogram(layer, limits="bucket_limit", counts="bucket"))
            values.append(Summary.Value(tag=tag("esd", layer.name), histo=histo))
        self._add(Summary(value=values), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        from torch.utils.tensorboard.summary import text as as_text  # noqa: PLC0415 -- optional

        self._add(as_text(tag, text), step)  # type: ignore[no-untyped-call]

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        from PIL import Image  # noqa: PLC0415 -- comes with matplotlib
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 -- optional

        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        height, width, colours = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=file.getvalue())
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


@final
class ByMethods:
    """Through the methods that writers of all kinds have, tensorboardX's among them; what one lacks is left out."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def layout(self, report: Report) -> None:
        """Write which charts the tab of custom scalars has."""
        self._call("add_custom_scalars", _layout(report))

    def numbers(self, numbers: Mapping[str, float], layers: Iterable[LayerReport], step: int) -> None:
        """Write numbers by tag, and the histograms of layers."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        for layer in layers:
            histogram = _histogram(layer, limits="bucket_limits", counts="bucket_counts")
            self._call("add_histogram_raw", tag("esd", layer.name), **histogram, global_step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self._call("add_text", tag, text, step)

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        self._call("add_image", tag, picture, step, dataformats="HWC")

    def _call(self, method: str, *arguments: object, **options: object) -> None:
        if hasattr(self._writer, method):
            getattr(self._writer, method)(*arguments, **options)


def values_of(writer: Any) -> Values:
    """Find the best way to write to a writer of the user's."""
    from torch.utils.tensorboard import FileWriter  # noqa: PLC0415 -- optional

    files = getattr(writer, "file_writer", None)  # None where the user has closed it, until it is written to again
    return InEvents(files.add_summary) if isinstance(files, FileWriter) else ByMethods(writer)


def _histogram(layer: LayerReport, *, limits: str, counts: str) -> dict[str, Any]:
    esd = layer.esd
    if esd is None:
        msg = f"{layer.name} has no histogram"
        raise ValueError(msg)
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
    """For the tab of custom scalars: each quantity of all layers in one chart, and alpha in its range for the first."""
    names = [layer.name for layer in report] + list(report.waiting)
    together = ("alpha", "phase", "mp_soft_rank", "stable_rank", "n_spikes")
    ranges = {
        name: ["Margin", [tag(which, name) for which in ("alpha", "alpha_low", "alpha_high")]]
        for name in names[:_RANGES]
    }
    return {
        "all layers": {which: ["Multiline", [f"esdmon_{which}/.*"]] for which in together},
        "alpha, and the range of fits nearly as good": ranges,
    }
