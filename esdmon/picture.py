"""The spectrum of a layer as a picture, for sinks that show pictures. Drawn from its record alone."""

from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

from esdmon.errors import MissingExtraError
from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase, mp_density, mp_edges

SIZE = (6.4, 4.0)  # inches, at 100 dots
EVERY = 5
"""Readings of a layer from one histogram of it to the next: a histogram costs as much as ten numbers. Our choice."""


def draw_esd(layer: LayerReport) -> NDArray[np.uint8]:
    """The density of eigenvalues on logarithmic axes, the law of noise with its edge, and the power law from xmin on.

    Returns:
        Red, green and blue of (height, width).

    Raises:
        MissingExtraError: without matplotlib.
        ValueError: for a layer without a histogram.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 -- optional
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a picture of a spectrum", "matplotlib", "demo") from error
    if layer.esd is None:
        msg = f"{layer.name} has no histogram to draw"
        raise ValueError(msg)
    # No pyplot: it keeps figures, and picks a display, for the whole process.
    figure = Figure(figsize=SIZE, dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    lam, width = np.asarray(layer.esd.centres), np.asarray(layer.esd.widths)
    density = np.asarray(layer.esd.counts) / (layer.esd.total * width)
    axes.bar(lam, density, width=width, color="#9db7d5", label="eigenvalues")
    seen = density[density > 0]
    axes.set(xscale="log", yscale="log", xlabel="λ of WᵀW/N", ylabel="density", ylim=(seen.min() / 3, seen.max() * 3))
    sigma2, edge = layer.measures.get("bulk_sigma", np.nan) ** 2, layer.measures.get("bulk_edge", np.nan)
    if np.isfinite(edge) and sigma2 > 0:
        low, high = mp_edges(layer.Q)
        inside = np.geomspace(max(low, 1e-6 * high), high, 400)[1:-1]
        share = 1 - layer.measures.get("n_spikes", 0.0) / layer.n_eigenvalues
        label = "noise that fits the bulk"
        axes.plot(inside * sigma2, share * mp_density(inside, layer.Q) / sigma2, color="#c0392b", label=label)
        axes.axvline(edge, color="#c0392b", ls=":", lw=1, label="its edge λ⁺")
    alpha, xmin, n_tail = (layer.measures.get(name, np.nan) for name in ("alpha", "xmin", "n_tail"))
    if np.isfinite(alpha) and xmin > 0:
        tail = np.geomspace(xmin, layer.measures["lambda_max"], 50)
        law = n_tail / layer.n_eigenvalues * (alpha - 1) / xmin * (tail / xmin) ** -alpha
        style = "-" if layer.alpha_is_meaningful else "--"
        told = f"α = {alpha:.2f} ± {layer.measures.get('alpha_stderr', np.nan):.2f}"
        axes.plot(tail, law, style, color="#222222", label=told if layer.alpha_is_meaningful else f"({told})")
    axes.legend(frameon=False, fontsize=8)
    name = layer.name.encode("latin-1", "replace").decode("latin-1")  # what the font that comes along can show
    axes.set_title(f"{name}: {layer.phase.value}, step {layer.step}", fontsize=10)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


@final
class Showing:
    """Which layers are worth more than numbers now: a sink asks it at each report."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._readings: dict[str, int] = {}
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
        """Those whose histogram is due: the first reading of each, and every fifth."""
        found = []
        for layer in report.new:
            if layer.esd is not None:
                count = self._readings.get(layer.name, 0)
                self._readings[layer.name] = count + 1
                if count % EVERY == 0:
                    found.append(layer)
        return found


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
