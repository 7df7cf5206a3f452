"""Choose which layers get a histogram or a picture, and queue them: a sink asks at each report."""

from collections.abc import Iterable
from typing import final

from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase

EVERY = 5
"""Readings of a layer from one histogram of it to the next: a histogram costs as much as ten numbers. Our choice."""
MOST = 24
"""Histograms in one report: they cost as much as the numbers of two hundred layers. Our choice."""


@final
class MediaSchedule:
    """Choose at each report which layers get a picture, since their phase has changed, and which a histogram."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._readings: dict[str, int] = {}  # since the last histogram
        self._shown: dict[str, int] = {}

    def changed(self, report: Report) -> list[LayerReport]:
        """Those whose phase is another than when they were last shown, or first read.

        A layer on the border between two phases is shown once in so many steps, more and more of them: each time when
        the run is twice as long as the last time.
        """
        found = []
        for layer in report.new:
            is_changed = layer.status == "ok" and self._phases.setdefault(layer.name, layer.phase) is not layer.phase
            if is_changed and report.step >= 2 * self._shown.get(layer.name, 0):
                self._shown[layer.name] = report.step
                self._phases[layer.name] = layer.phase
                found.append(layer)
        return found

    def histograms(self, report: Report) -> list[LayerReport]:
        """Return those whose histogram is due, at most `MOST` of them, those first that have waited longest.

        It is due at the first reading of a layer, and at every fifth after one that was shown.
        """
        due = []
        for layer in report.new:
            if layer.esd is not None:
                self._readings[layer.name] = self._readings.get(layer.name, EVERY - 1) + 1
                if self._readings[layer.name] >= EVERY:
                    due.append(layer)
        due = sorted(due, key=lambda layer: -self._readings[layer.name])[:MOST]
        self._readings |= dict.fromkeys((layer.name for layer in due), 0)
        return due


@final
class Gallery:
    """Layers that wait to be drawn, each once: a sink queues them at a report and draws them one by one afterwards.

    What was queued last is drawn first, and of layers that were queued together the first. A layer that is queued again
    while it waits is drawn in its newer state only.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, LayerReport] = {}  # what is drawn first stands last
        self._taken: dict[str, int] = {}  # by name, the step of the state that was taken last

    def __len__(self) -> int:
        """Return how many layers wait."""
        return len(self._waiting)

    def queue(self, layers: Iterable[LayerReport]) -> None:
        """Put layers in front of what waits; those without a histogram, or taken in that state before, are left out."""
        for layer in reversed(list(layers)):
            if self._is_new(layer):
                self._waiting.pop(layer.name, None)
                self._waiting[layer.name] = layer

    def queue_last(self, layers: Iterable[LayerReport]) -> None:
        """Put layers behind what waits; those that wait already keep their place."""
        new = {layer.name: layer for layer in layers if self._is_new(layer)}
        behind = {name: new[name] for name in reversed(new) if name not in self._waiting}
        self._waiting = behind | {name: new.get(name, layer) for name, layer in self._waiting.items()}

    def take(self) -> LayerReport | None:
        """Remove the layer that is to be drawn next, and return it; None where none waits."""
        if not self._waiting:
            return None
        name, layer = self._waiting.popitem()
        self._taken[name] = layer.step
        return layer

    def rewind(self, step: int) -> None:
        """Forget what was read after a step."""
        self._waiting = {name: layer for name, layer in self._waiting.items() if layer.step <= step}
        self._taken = {name: taken for name, taken in self._taken.items() if taken <= step}

    def _is_new(self, layer: LayerReport) -> bool:
        return layer.esd is not None and self._taken.get(layer.name) != layer.step
