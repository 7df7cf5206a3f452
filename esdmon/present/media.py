"""Choose which layers get a histogram or a picture, and queue the pictures that are still to be drawn."""

import math
from collections.abc import Iterable
from typing import final

from esdmon.present.figures import prepare_drawing
from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase

HISTOGRAM_INTERVAL = 5
"""Number of readings between two histograms of a layer: a histogram costs as much as ten numbers. Our choice."""
MAX_HISTOGRAMS = 24
"""Largest number of histograms in one report: they cost as much as the numbers of two hundred layers. Our choice."""


@final
class Media:
    """The histograms and pictures of one sink: a schedule of both, and the queue of pictures.

    A sink calls `histograms` and `queue_changed` at each report, and draws what `take` returns between reports. Without
    matplotlib no picture is queued.
    """

    def __init__(self) -> None:
        self._can_draw = prepare_drawing()
        self._restart()
        self._pictures = PictureQueue()

    def __len__(self) -> int:
        """Return the number of pictures in the queue."""
        return len(self._pictures)

    def histograms(self, report: Report) -> list[LayerReport]:
        """Return the layers for which a histogram is due."""
        return self._histograms.due(report)

    def queue_changed(self, report: Report) -> None:
        """Queue a picture of each layer whose phase has changed."""
        self.queue_first(self._changes.due(report))

    def queue_first(self, layers: Iterable[LayerReport]) -> None:
        """Queue a picture of each layer, ahead of all others."""
        if self._can_draw:
            self._pictures.put_first(layers)

    def queue_last(self, layers: Iterable[LayerReport]) -> None:
        """Queue a picture of each layer, behind all others."""
        if self._can_draw:
            self._pictures.put_last(layers)

    def take(self) -> LayerReport | None:
        """Remove and return the layer to draw next; None if the queue is empty."""
        return self._pictures.take()

    def rewind(self, step: int) -> None:
        """Drop pictures of readings after a step, and restart the schedule."""
        self._pictures.rewind(step)
        self._restart()

    def _restart(self) -> None:
        self._histograms = HistogramSchedule(most=MAX_HISTOGRAMS)
        self._changes = ChangeSchedule()


@final
class HistogramSchedule:
    """Schedule of the histograms: decides at each report for which layers one is due.

    Args:
        most: largest number of histograms in one report; None for no limit.
    """

    def __init__(self, *, most: int | None = None) -> None:
        self._most = most
        self._phases: dict[str, Phase] = {}  # at the last histogram
        self._readings_since: dict[str, int] = {}

    def due(self, report: Report) -> list[LayerReport]:
        """Return the layers for which a histogram is due: changed phases first, then the longest overdue.

        A histogram is due at the first reading of a layer, when the phase differs from the phase at its last histogram,
        and `HISTOGRAM_INTERVAL` readings after its last histogram.
        """
        since = self._readings_since
        overdue: list[tuple[float, LayerReport]] = []
        for layer in report.new:
            if layer.esd is not None:
                since[layer.name] = since.get(layer.name, 0) + 1
                if self._phases.get(layer.name) is not layer.phase:
                    overdue.append((math.inf, layer))
                elif since[layer.name] >= HISTOGRAM_INTERVAL:
                    overdue.append((since[layer.name], layer))
        chosen = [layer for _, layer in sorted(overdue, key=lambda pair: -pair[0])[: self._most]]
        for layer in chosen:
            since[layer.name], self._phases[layer.name] = 0, layer.phase
        return chosen


@final
class ChangeSchedule:
    """Schedule of the pictures: decides at each report which layers get one because their phase has changed."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._last_picture: dict[str, int] = {}  # step

    def due(self, report: Report) -> list[LayerReport]:
        """Return the layers whose phase differs from that in their last picture, or, without one, from their first.

        A layer gets its next picture only when the run is twice as long as at its last picture, so that a layer on the
        border between two phases does not get a picture at every report.
        """
        found = []
        for layer in report.new:
            is_changed = (
                layer.status == "ok" and self._phases.setdefault(layer.name, layer.shown_phase) is not layer.shown_phase
            )
            if is_changed and report.step >= 2 * self._last_picture.get(layer.name, 0):
                self._last_picture[layer.name] = report.step
                self._phases[layer.name] = layer.shown_phase
                found.append(layer)
        return found


@final
class PictureQueue:
    """A queue of layers to draw, with each layer at most once. The latest layers of `put_first` are taken first.

    If a layer is put into the queue again before it is taken, the newer reading replaces the older one. Layers without
    a histogram, and readings that were taken before, are skipped.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, LayerReport] = {}  # in reverse order: the last is taken first
        self._taken: dict[str, int] = {}  # step of the reading that was taken last, by layer

    def __len__(self) -> int:
        """Return the number of layers in the queue."""
        return len(self._waiting)

    def put_first(self, layers: Iterable[LayerReport]) -> None:
        """Put layers ahead of all others, in their order."""
        for layer in reversed(list(layers)):
            if self._is_new(layer):
                self._waiting.pop(layer.name, None)
                self._waiting[layer.name] = layer

    def put_last(self, layers: Iterable[LayerReport]) -> None:
        """Put layers behind all others, in their order; layers already in the queue keep their place."""
        new = {layer.name: layer for layer in layers if self._is_new(layer)}
        behind = {name: new[name] for name in reversed(new) if name not in self._waiting}
        self._waiting = behind | {name: new.get(name, layer) for name, layer in self._waiting.items()}

    def take(self) -> LayerReport | None:
        """Remove and return the first layer; None if the queue is empty."""
        if not self._waiting:
            return None
        name, layer = self._waiting.popitem()
        self._taken[name] = layer.step
        return layer

    def rewind(self, step: int) -> None:
        """Drop readings after a step."""
        self._waiting = {name: layer for name, layer in self._waiting.items() if layer.step <= step}
        self._taken = {name: taken for name, taken in self._taken.items() if taken <= step}

    def _is_new(self, layer: LayerReport) -> bool:
        return layer.esd is not None and self._taken.get(layer.name) != layer.step
