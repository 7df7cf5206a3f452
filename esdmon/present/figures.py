"""Draw the spectrum of a layer from its record, for sinks that show pictures.

Pictures are drawn while a model trains, so drawing must not take longer than a reading: matplotlib is imported and used
once before training (`prepare_drawing`), one figure is reused for all pictures, and axes, legend and tick labels are
drawn directly, without matplotlib's locators, formatters and layout, which took nine tenths of the time.
"""

import logging
import threading
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from esdmon.errors import MissingExtraError
from esdmon.records import Esd, LayerReport, curves
from esdmon.records.drawing_log import without_debugging_lines

if TYPE_CHECKING:
    from matplotlib.text import Text

_log = logging.getLogger("esdmon")
SIZE = (6.4, 4.0)  # inches, at 100 dots per inch
_AXES_BOX = (0.125, 0.18, 0.85, 0.52)  # left, bottom, width and height, as fractions of the picture
_LONGEST_NAME = 36  # characters that fit beside the step
_MOST_TICKS = 6
_BLUE, _RED, _BLACK, _GREY = "#9db7d5", "#c0392b", "#222222", "#dddddd"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_local = threading.local()  # matplotlib is not thread-safe: each thread has its own figure


def prepare_drawing() -> bool:
    """Draw a first picture, so that later ones do not wait for imports.

    Returns:
        True if pictures can be drawn; False without matplotlib, or with a damaged installation, which is logged.
    """
    esd = Esd(-2.0, 0.0, (1, 2, 1))
    try:
        draw_esd(LayerReport("fc", "ok", 0, N=4, M=4, esd=esd, measures={"bulk_sigma": 0.5, "bulk_edge": 1.0}))
    except MissingExtraError:
        return False
    except Exception as error:  # noqa: BLE001 -- a damaged installation must not prevent training
        _log.warning("esdmon: matplotlib failed (%s): no pictures are drawn. Reinstall matplotlib.", error)
        return False
    return True


def draw_esd(layer: LayerReport) -> NDArray[np.uint8]:
    """Draw the density of eigenvalues, the law of noise of its bulk, and the fitted power law, on logarithmic axes.

    Returns:
        RGB values of shape (400, 640, 3).

    Raises:
        MissingExtraError: without matplotlib.
        ValueError: for a layer without a histogram.
    """
    painter: _Painter | None = getattr(_local, "painter", None)
    with without_debugging_lines():
        if painter is None:
            try:
                painter = _local.painter = _Painter()
            except ImportError as error:
                raise MissingExtraError("a picture of a spectrum", "matplotlib", "demo") from error
        return painter.draw(layer)


@final
class _Painter:
    """A figure that is reused for all pictures of one thread.

    Fonts and colours are all explicit, so that the user's style (`rcParams`) has no effect.
    """

    def __init__(self) -> None:
        # Not pyplot: it keeps figures, and chooses a display, for the whole process.
        from matplotlib import get_data_path  # noqa: PLC0415 -- optional
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.collections import LineCollection  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.font_manager import get_font  # noqa: PLC0415

        self._font = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self._font_characters = get_font(str(self._font)).get_charmap().keys()
        self._figure = Figure(figsize=SIZE, dpi=100, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes(_AXES_BOX)
        self._axes.set_axis_off()
        self._grid = LineCollection([], colors=_GREY, linewidths=0.8, zorder=0)
        self._axes.add_collection(self._grid, autolim=False)
        self._bars = self._axes.stairs([1.0], [0.0, 1.0], fill=True, color=_BLUE, zorder=1)
        (self._noise,) = self._axes.plot([], [], color=_RED, lw=2, ls="-", marker="", zorder=3)
        (self._edge,) = self._axes.plot([], [], color=_RED, lw=1.5, ls=":", marker="", zorder=2)
        (self._power_law,) = self._axes.plot([], [], color=_BLACK, lw=2, marker="", zorder=4)
        self._title = self._text(0.02, 0.94, 15.5)
        self._step = self._text(0.98, 0.94, 15, at="right")
        self._phase = self._text(0.02, 0.855, 15)
        self._power_law_key = self._text(0.98, 0.855, 15, at="right")
        self._text(0.02, 0.765, 14, "■", color=_BLUE)
        self._text(0.055, 0.765, 14, "eigenvalues")
        self._noise_key = self._text(0.36, 0.765, 14, "━ noise in the bulk", color=_RED)
        self._edge_key = self._text(0.98, 0.765, 14, "┊ its edge λ⁺", color=_RED, at="right")
        self._text(_AXES_BOX[0] + _AXES_BOX[2] / 2, 0.035, 14, "λ of WᵀW/N", at="center")
        self._text(0.022, _AXES_BOX[1] + _AXES_BOX[3] / 2, 14, "density", at="center", rotation=90)
        self._x_labels = [self._text(0, 0.12, 13.5, at="center") for _ in range(_MOST_TICKS + 1)]
        self._y_labels = [self._text(_AXES_BOX[0] - 0.01, 0, 13.5, at="right") for _ in range(_MOST_TICKS + 1)]

    def draw(self, layer: LayerReport) -> NDArray[np.uint8]:
        """Draw one layer."""
        if layer.esd is None:
            msg = f"{layer.name} has no histogram to draw"
            raise ValueError(msg)
        name = layer.name if len(layer.name) <= _LONGEST_NAME else f"…{layer.name[1 - _LONGEST_NAME :]}"
        self._title.set_text(self._readable(name))
        self._step.set_text(f"step {layer.step}")
        self._phase.set_text(layer.shown_phase.value)
        bottom, top = self._draw_bars(layer.esd)
        right = self._draw_noise(layer, layer.esd, bottom, top)
        self._draw_power_law(layer, layer.esd)
        margin = 0.03 * (right - layer.esd.low)
        self._draw_axes((layer.esd.low - margin, right + margin), (bottom, top))
        self._canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]

    def _text(self, x: float, y: float, size: float, text: str = "", *, at: str = "left", **more: object) -> "Text":
        from matplotlib.font_manager import FontProperties  # noqa: PLC0415 -- optional

        given = {"color": _BLACK, "usetex": False, "parse_math": False, "va": "center"} | more
        font = FontProperties(fname=str(self._font), size=size)
        return self._figure.text(x, y, text, ha=at, fontproperties=font, **given)  # type: ignore[arg-type]

    def _readable(self, name: str) -> str:
        """Replace characters that the font does not have."""
        return "".join(
            letter if ord(letter) in self._font_characters and letter.isprintable() else "?" for letter in name
        )

    def _draw_bars(self, esd: Esd) -> tuple[float, float]:
        """Draw the histogram, and return the limits of the vertical axis."""
        heights = curves.heights(esd)
        seen = heights[np.isfinite(heights)]
        bottom, top = float(seen.min()) - 0.5, float(seen.max()) + 0.5
        self._bars.set_data(np.maximum(heights, bottom), np.asarray(esd.edges), baseline=bottom)
        return bottom, top

    def _draw_noise(self, layer: LayerReport, esd: Esd, bottom: float, top: float) -> float:
        """Draw the law of noise and its edge, and return the right limit of the drawn curves."""
        noise = curves.noise(layer, esd)
        for artist in (self._noise, self._edge, self._noise_key, self._edge_key):
            artist.set_visible(noise is not None)
        if noise is None:
            return esd.high
        edge = layer.measures["bulk_edge"]
        place, density = noise
        self._noise.set_data(place, np.where(density > bottom - 1, density, np.nan))
        self._edge.set_data([np.log10(edge)] * 2, [bottom, top])
        return max(esd.high, float(np.log10(edge)))

    def _draw_power_law(self, layer: LayerReport, esd: Esd) -> None:
        """Draw the power law from xmin on; dashed if alpha is not meaningful."""
        law = curves.power_law(layer, esd)
        self._power_law.set_visible(law is not None)
        self._power_law_key.set_visible(law is not None)
        if law is None:
            return
        self._power_law.set_data(*law)
        self._power_law.set_linestyle("-" if layer.alpha_is_meaningful else "--")
        fit = f"α = {layer.alpha_text.strip('()')}"
        solid, dashed = f"━ power law, {fit}", f"╍ ({fit}) not meaningful"
        self._power_law_key.set_text(solid if layer.alpha_is_meaningful else dashed)

    def _draw_axes(self, xlim: tuple[float, float], ylim: tuple[float, float]) -> None:
        """Draw the frame, and lines with numbers at decades, or at round numbers if there are too few decades."""
        self._axes.set_xlim(*xlim)
        self._axes.set_ylim(*ylim)
        left, bottom, width, height = _AXES_BOX
        x_ticks, y_ticks = ticks(*xlim), ticks(*ylim)
        for label, tick in zip_longest(self._x_labels, x_ticks):
            label.set_text(tick[1] if tick else "")
            label.set_x(left + width * (tick[0] - xlim[0]) / (xlim[1] - xlim[0]) if tick else 0)
        for label, tick in zip_longest(self._y_labels, y_ticks):
            label.set_text(tick[1] if tick else "")
            label.set_y(bottom + height * (tick[0] - ylim[0]) / (ylim[1] - ylim[0]) if tick else 0)
        vertical = [[(x, ylim[0]), (x, ylim[1])] for x in (*(x for x, _ in x_ticks), *xlim)]
        horizontal = [[(xlim[0], y), (xlim[1], y)] for y in (*(y for y, _ in y_ticks), *ylim)]
        self._grid.set_segments(vertical + horizontal)


def ticks(low: float, high: float) -> Sequence[tuple[float, str]]:
    """Choose about six positions with their labels, on an axis that shows log₁₀ from `low` to `high`."""
    every = int(np.ceil((high - low) / _MOST_TICKS))
    decades = range(int(np.ceil(low / every)) * every, int(np.floor(high)) + 1, every)
    if len(decades) > 1:
        return [(float(k), f"10{str(k).translate(_SUPERSCRIPTS)}") for k in decades]
    return [(float(x), f"{10**x:.3g}") for x in np.linspace(low, high, 6)[1:-1]]
