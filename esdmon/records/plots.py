"""Plot with matplotlib, which is optional, for notebooks and papers. Text has the colours of the user's style.

Pictures for trackers, which are drawn while a model trains, are made by `esdmon.present.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from esdmon.errors import InputError, MissingExtraError, masked
from esdmon.records import curves
from esdmon.records.colours import PHASE_HEX
from esdmon.records.drawing_log import with_fonts_found
from esdmon.records.table import shorten, shorten_all
from esdmon.spectrum import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from esdmon.records.layer import LayerReport

MAX_PANELS = 24
"""Layers in one figure of a report: more would be too small to read. Our choice."""
_COLUMNS = 4
_LONGEST_NAME = 36  # characters in the title of a panel
_MAX_LINES = 10  # lines that a legend names
_MAX_LABELS = 40  # names of layers beside a map
_MAX_NAME = 40  # characters of a name there and in a legend
_BLUE, _RED = "#9db7d5", "#d8433b"
_STATES = {phase.value: colour for phase, colour in PHASE_HEX.items()}
_NOT_OK = "#222222"


@dataclass(frozen=True, slots=True)
class Rows:
    """The data for the plot of a run over its steps."""

    steps: Sequence[int]
    """Steps of the reports, ascending."""
    states: Mapping[str, Sequence[str]]
    """For each layer, its phase or status at each of the steps; empty before its first reading."""
    alphas: Mapping[str, Sequence[float]]
    """For each layer, alpha at each of the steps; NaN if it is not meaningful."""
    alerts: Sequence[tuple[int, str]]
    """Step and layer of each alert that began."""


def plot_layer(layer: LayerReport, axes: Axes | None) -> Axes:
    """Draw the spectrum of a layer, with a legend: see `LayerReport.plot`."""
    if layer.esd is None and layer.reason:
        raise InputError(f"{layer.name} has no spectrum at step {layer.step}: {layer.reason}")
    if layer.esd is None:
        raise InputError(
            f"{layer.name} has no spectrum at step {layer.step}. A JSONL has that of every fifth reading: "
            "esdmon.load(run).spectrum(name) finds the last one."
        )
    return _in_new_figure(layer) if axes is None else _on_axes(axes, layer)


@with_fonts_found
def _in_new_figure(layer: LayerReport) -> Axes:
    _, axes = _pyplot().subplots(figsize=(6.4, 4.2), layout="constrained")
    return _on_axes(axes, layer)


def _on_axes(axes: Axes, layer: LayerReport) -> Axes:
    _draw_spectrum(axes, layer)
    axes.set_title(_plain(shorten(layer.name, _LONGEST_NAME)), loc="left", fontsize="medium")
    axes.set_title(layer.phase.value, loc="right", fontsize="medium", color=PHASE_HEX[layer.phase])
    axes.set(xlabel="eigenvalue λ of WᵀW/N", ylabel="density")
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small", loc="upper right")
    return axes


@with_fonts_found
def plot_layers(layers: Sequence[LayerReport], *, total: int) -> Figure:
    """Draw the spectra of several layers: see `Report.plot`.

    Args:
        layers: those to draw, each with a spectrum.
        total: the number of layers that they were chosen from.
    """
    if not layers:
        raise InputError(
            "No layer has a spectrum to plot. A JSONL has that of every fifth reading: esdmon.load(run).spectrum(name) "
            "finds the last one."
        )
    rows = math.ceil(len(layers) / _COLUMNS)
    columns = min(len(layers), _COLUMNS)
    size = (3.4 * columns + 0.4, 2.7 * rows + 0.7)
    figure: Figure
    figure, grid = _pyplot().subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    for axes, layer in zip(grid.flat, layers, strict=False):
        _draw_spectrum(axes, layer)
        axes.set_title(_plain(shorten(layer.name, _LONGEST_NAME)), loc="left", fontsize="small")
        at = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        axes.text(0.98, 0.97, layer.phase.value, color=PHASE_HEX[layer.phase], fontsize="small", **at)
    for axes in grid.flat[len(layers) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    labels = [label.partition(",")[0] for label in labels]
    some = f"{len(layers)} of {total} layers" if total > len(layers) else None
    figure.legend(handles, labels, title=some, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    figure.supxlabel("eigenvalue λ of WᵀW/N", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


@with_fonts_found
def plot_course(rows: Rows) -> Figure:
    """Draw the phases of all layers over the steps, the alerts on them, and alpha where it is meaningful."""
    height = min(0.32 * len(rows.states) + 0.8, 9.0)
    figure: Figure
    figure, (top, bottom) = _pyplot().subplots(
        2, 1, sharex=True, figsize=(9, height + 3), height_ratios=(height, 2.4), layout="constrained"
    )
    labels = [_plain(name) for name in shorten_all(list(rows.states), _MAX_NAME)]
    _draw_phases(top, rows, labels)
    has_alerts = _mark_alerts(top, rows)
    shown = {state for states in rows.states.values() for state in states if state}
    _add_phase_legend(figure, shown, has_alerts=has_alerts)
    _draw_alphas(bottom, rows, labels)
    return figure


def _draw_phases(axes: Axes, rows: Rows, labels: Sequence[str]) -> None:
    """Draw a map with a row for each layer, in the colours of its phases."""
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 -- `_pyplot` says if it is missing

    codes = {state: float(code) for code, state in enumerate(_STATES)} | {"": math.nan}
    image = np.array([[codes.get(state, len(_STATES)) for state in states] for states in rows.states.values()], float)
    # A reading holds from its step to the next one.
    last = rows.steps[-1] + (rows.steps[-1] - rows.steps[-2] if len(rows.steps) > 1 else 1)
    colours = ListedColormap([*_STATES.values(), _NOT_OK])
    edges = np.arange(len(labels) + 1)
    axes.pcolormesh([*rows.steps, last], edges, image, cmap=colours, vmin=-0.5, vmax=len(_STATES) + 0.5)
    every = math.ceil(len(labels) / _MAX_LABELS)
    axes.set_yticks(edges[:-1:every] + 0.5, labels[::every], fontsize="small")
    axes.invert_yaxis()


def _mark_alerts(axes: Axes, rows: Rows) -> bool:
    """Draw a triangle where an alert began in a layer of the map, and return whether there is one."""
    names = list(rows.states)
    places = [(step, names.index(name) + 0.5) for step, name in rows.alerts if name in names]
    if places:
        x, y = zip(*places, strict=True)
        axes.plot(x, y, "v", color="white", mec="black", ms=8, ls="", clip_on=False)
    return bool(places)


def _draw_alphas(axes: Axes, rows: Rows, labels: Sequence[str]) -> None:
    for label, name in zip(labels, rows.states, strict=True):
        is_known = np.isfinite(np.asarray(rows.alphas[name], float)).any()
        axes.plot(rows.steps, rows.alphas[name], ".-", lw=1.2, ms=4, label=label if is_known else "_")
    axes.axhline(2, color="gray", lw=1, ls="--", label="below: over-regularised")
    axes.set(xlabel="step", ylabel="alpha, where meaningful")
    if len(labels) <= _MAX_LINES:
        axes.legend(frameon=False, fontsize="small", ncols=2)


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415 -- optional, and it chooses a display for the process
    except ImportError as error:
        raise MissingExtraError("plot()", "matplotlib", "notebook") from error
    return plt


def _draw_spectrum(axes: Axes, layer: LayerReport) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415 -- `_pyplot` says if it is missing

    esd = layer.esd
    if esd is None:
        return
    heights = 10 ** curves.heights(esd)
    floor = heights[heights > 0].min() / 3
    edges = 10 ** np.asarray(esd.edges)
    axes.set(xscale="log", yscale="log")
    axes.stairs(np.maximum(heights, floor), edges, fill=True, color=_BLUE, baseline=floor, label="eigenvalues")
    edge = layer.measures.get("bulk_edge", math.nan)
    noise = curves.noise(layer, esd)
    if noise is not None:
        axes.plot(*(10**each for each in noise), color=_RED, lw=1.8, label="noise that fits the bulk")
        axes.axvline(edge, color=_RED, lw=1.2, ls=":", label="its edge λ⁺")
    law = curves.power_law(layer, esd)
    if law is not None:
        style = "-" if layer.alpha_is_meaningful else "--"
        meaning = "" if layer.alpha_is_meaningful else ", not meaningful"
        colour = axes.xaxis.label.get_color()
        label = f"power law, α = {layer.alpha_text.strip('()')}{meaning}"
        axes.plot(*(10**each for each in law), color=colour, lw=1.8, ls=style, label=label)
    spikes = layer.measures.get("n_spikes", math.nan)
    above = esd.top if math.isnan(spikes) else esd.top[: int(spikes)]  # all where no bulk of noise is known
    if above:  # an empty line that is not clipped has no limits, which breaks the layout
        axes.plot(
            above, [floor] * len(above), "|", color="gray" if noise is None else _RED, ms=11, mew=1.4, clip_on=False
        )
    axes.set_ylim(floor, heights.max() * 3)
    axes.set_xlim(edges[0], max(edges[-1], edge if math.isfinite(edge) else 0) * 1.1)
    axes.tick_params(which="both", labelsize="small")
    if math.floor(esd.high) > math.ceil(esd.low):  # numbers at decades are enough
        axes.xaxis.set_minor_formatter("")
    else:
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.spines[["top", "right"]].set_visible(False)


def _add_phase_legend(figure: Figure, states: set[str], *, has_alerts: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 -- optional
    from matplotlib.patches import Patch  # noqa: PLC0415

    shown = [phase.value for phase in Phase if phase.value in states]
    handles: list[Patch | Line2D] = [Patch(color=_STATES[state], label=state) for state in shown]
    handles += [Patch(color=_NOT_OK, label=state) for state in sorted(states - set(_STATES))]
    if has_alerts:
        handles.append(Line2D([], [], marker="v", color="white", mec="black", ms=8, ls="", label="an alert begins"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize="small")


def _plain(name: str) -> str:
    """Return a name that matplotlib does not take for a formula, without characters that break the line."""
    return masked(name).replace("$", r"\$")
