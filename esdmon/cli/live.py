"""What `esdmon demo` and `esdmon tail` show of a run in a terminal: what is wrong now, and the last reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esdmon.errors import MissingExtraError
from esdmon.present.colours import PHASE_COLOURS
from esdmon.records import LayerReport, Report, Severity, show
from esdmon.records.outcome import named
from esdmon.records.table import shorten
from esdmon.records.text import age_lines, count, counted
from esdmon.records.timeline import Timeline

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MAX_ROWS = 40
"""Layers up to which all are in the table; above, those that are of interest. Our choice."""
_LONGEST_NAME = 28  # characters, so that the table fits 80 columns
_SEVERITY_COLOURS: dict[Severity, str] = {
    "critical": "bold red",
    "error": "bold red",
    "warning": "bold yellow",
    "info": "dim",
}


def console(who: str, extra: str) -> Console:
    """Return the terminal.

    Raises:
        MissingExtraError: without rich.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError(who, "rich", extra) from error
    return Console()


def overview(timeline: Timeline, *, since: int = 0) -> RenderableType:
    """Return what is wrong now, in words, and below it the table of the last reading.

    Args:
        timeline: the run, from its beginning or from a later step.
        since: the first step of the timeline; a phase that was there already is marked `≤`.
    """
    from rich.console import Group  # noqa: PLC0415 -- optional

    report = timeline.last
    if report is None:
        return "no reading yet"
    return Group(*_what_is_wrong(timeline, report, since), "", _table(timeline, report, since), *_below(report))


def _what_is_wrong(timeline: Timeline, report: Report, since: int) -> Iterator[RenderableType]:
    from rich.text import Text  # noqa: PLC0415 -- optional

    yield Text(f"step {report.step}, {count(len(report), 'layer')}: {counted(report)}", style="bold")
    firing = [episode for episode in timeline.firing if episode.alert.severity != "info"]
    for episode in firing:
        alert = episode.alert
        where = f" in {named(alert.layers)}" if alert.layers else ""
        yield Text.assemble(
            (f"{alert.severity}: {alert.rule}{where}, since step {episode.began}. ", _SEVERITY_COLOURS[alert.severity]),
            alert.message,
        )
    # The summary of a reading counts alerts; those from before the timeline have no text.
    known = {episode.alert.rule for episode in timeline.firing}
    older = {rule: number for rule, number in report.firing.items() if number and rule not in known}
    for rule, number in older.items():
        layers = count(number, "layer")
        yield Text(f"{rule} in {layers}, since before step {since}", style=_SEVERITY_COLOURS["warning"])
    if not firing and not older:
        yield Text("No alert fires.", style="green")


def _table(timeline: Timeline, report: Report, since: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 -- optional
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in ("layer", "phase", "since", "alpha", "soft rank", "spikes"):
        table.add_column(title, justify="left" if title in ("layer", "phase") else "right", no_wrap=True)
    for layer in _rows(timeline, report):
        stages = timeline.stages.get(layer.name)
        began = "" if not stages else f"{'≤ ' if stages[-1].step <= since else ''}{stages[-1].step}"
        cells = [Text(cell, style=style) for cell, style in _cells(layer, began)]
        table.add_row(Text(shorten(_printable(layer.name), _LONGEST_NAME)), *cells)
    return table


def _rows(timeline: Timeline, report: Report) -> list[LayerReport]:
    """Return the layers of the table: of a large model those with an alert, and those that changed phase last."""
    if len(report) <= MAX_ROWS:
        return list(report)
    alerted = {name for episode in timeline.firing for name in episode.alert.layers}
    latest = {name: stages[-1].step for name, stages in timeline.stages.items() if len(stages) > 1}
    ranked = sorted(report, key=lambda layer: (layer.name in alerted, latest.get(layer.name, -1)), reverse=True)
    chosen = {layer.name for layer in ranked[:MAX_ROWS]}
    return [layer for layer in report if layer.name in chosen]


def _below(report: Report) -> list[RenderableType]:
    from rich.text import Text  # noqa: PLC0415 -- optional

    lines = age_lines(report.layers, step=report.step, waiting=report.waiting)
    if len(report) > MAX_ROWS:
        hidden = len(report) - MAX_ROWS
        lines.append(f"{hidden} more layers: shown are those with an alert, and those that changed phase last")
    return [Text(line, style="dim") for line in lines]


def _cells(layer: LayerReport, began: str) -> list[tuple[str, str]]:
    """Return texts with their styles."""
    if layer.status != "ok":
        return [(layer.status, "red"), (began, "")]
    return [
        (layer.shown_phase.value, PHASE_COLOURS[layer.shown_phase]),
        (began, ""),
        (layer.alpha_text, "" if layer.alpha_is_meaningful else "bright_black"),
        (show(layer, "mp_soft_rank", ".2f"), ""),
        (show(layer, "n_spikes", ".0f"), ""),
    ]


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)
