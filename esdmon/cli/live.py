"""Show a run in a terminal, for `esdmon demo` and `esdmon tail`: what is wrong now, and the last reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from esdmon.errors import MissingExtraError, masked
from esdmon.present.colours import PHASE_COLOURS
from esdmon.records import Alert, LayerReport, Report, Severity, severity_word, show
from esdmon.records.outcome import episode_text, without_prefix
from esdmon.records.table import shorten_all, without_common_prefix
from esdmon.records.text import age_lines, count, counted
from esdmon.records.timeline import Timeline

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MAX_ROWS = 40
"""Layers up to which all are in the table; above, those that are of interest. Our choice."""
_MOST_LINES = 9
"""Lines on single layers that an alert has at most: eight, and one that counts the others."""
_FEWEST_ROWS = 5
"""Rows that the table keeps while there are lines on single layers to leave out. Our choice."""
_TABLE_FRAME = 5  # lines of the table beside its rows: two titles, and three that are blank
_COLUMNS = ("phase", "since", "alpha", "soft rank", "spikes")
_GAP = 3  # blanks between two columns
_EDGE = 2  # blanks at the two ends of a row
_LEAST_NAME = 20  # characters of a name that a narrow terminal shows before columns are left out, as in `esdmon scan`
_SEVERITY_COLOURS: dict[Severity, str] = {
    "critical": "bold red",
    "error": "bold red",
    "warning": "bold yellow",
    "info": "dim",
}


def console(extra: str) -> Console:
    """Return the terminal.

    Raises:
        MissingExtraError: without rich.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("this command", "rich", extra) from error
    return Console()


def overview(timeline: Timeline, *, width: int, height: int | None = None, from_start: bool = True) -> RenderableType:
    """Return what is wrong now, in words, and below it the table of the last reading.

    Args:
        timeline: the run, from its beginning or from a later step.
        width: columns of the terminal.
        height: lines that there is room for: rows of the table and then lines on single layers are left out until the
            rest fits. Default: as many as there are.
        from_start: False if the timeline begins later; a step of which only the latest is known is marked `≤`.
    """
    from rich.console import Group  # noqa: PLC0415 -- optional

    report = timeline.last
    if report is None:
        return "no reading yet"
    single, rows = _MOST_LINES, MAX_ROWS
    if height is not None:
        single, rows = _room(timeline, report, width=width, height=height)
    return Group(
        *_what_is_wrong(timeline, report, single=single, width=width),
        "",
        _table(timeline, _rows(timeline, report, rows), width=width, from_start=from_start),
        *_below(report, rows),
    )


def _room(timeline: Timeline, report: Report, *, width: int, height: int) -> tuple[int, int]:
    """Return how many lines on single layers an alert may have, and rows the table, for all to fit into a height."""
    from rich.console import Console, Group  # noqa: PLC0415 -- optional

    console = Console(width=width)

    def lines(*parts: RenderableType) -> int:
        return len(console.render_lines(Group(*parts), pad=False))

    most = min(len(report), MAX_ROWS)
    for single in range(_MOST_LINES, -1, -1):
        words = lines(*_what_is_wrong(timeline, report, single=single, width=width))
        rows = height - words - _TABLE_FRAME - lines(*_below(report, most))
        if rows >= most:
            return single, most
        rows -= lines(*_below(report, 1)) - lines(*_below(report, most))  # the line that says how many are hidden
        if rows >= min(most, _FEWEST_ROWS):
            break
    return single, max(rows, 1)


def _what_is_wrong(timeline: Timeline, report: Report, *, single: int, width: int) -> Iterator[RenderableType]:
    from rich.text import Text  # noqa: PLC0415 -- optional

    yield Text(f"step {report.step}, {count(len(report), 'layer')}: {counted(report)}", style="bold")
    for episode in timeline.firing:  # the worst first, notices last
        title = masked(f"{severity_word(episode.alert.severity)}: {episode_text(episode)}: ")
        yield Text.assemble((title, _SEVERITY_COLOURS[episode.alert.severity]), masked(without_prefix(episode.first)))
        for line in _layer_lines(episode.alert, single, width):
            yield Text(masked(f"  {line}"), style="dim", overflow="ellipsis", no_wrap=True)
    # The summary of a reading counts alerts; those from before the timeline have no text.
    known = {episode.alert.rule for episode in timeline.firing}
    older = {rule: number for rule, number in report.firing.items() if number and rule not in known}
    for rule, number in older.items():
        yield Text(f"{rule} fires in {count(number, 'layer')}, since some time", style=_SEVERITY_COLOURS["warning"])
    if not known and not older:
        yield Text("No alert fires.", style="green")
    ended = [episode for episode in timeline.episodes if episode.ended is not None]
    if ended:
        latest = max(ended, key=lambda episode: episode.ended or 0)
        yield Text(masked(f"The last one that ended: {episode_text(latest)}."), style="dim")


def _layer_lines(alert: Alert, most: int, width: int) -> list[str]:
    """Return what an alert on several layers has found in each, by short names, and a line that counts the others."""
    if len(alert.layers) < 2 or not alert.by_layer or most < 2:
        return []
    shown = alert.by_layer[: most if len(alert.layers) <= most else most - 1]
    layers = [masked(name) for name in alert.layers]
    short = dict(zip(layers, shorten_all(without_common_prefix(layers), max(8, width // 4)), strict=True))
    lines = [str(replace(each, layer=short.get(masked(each.layer), each.layer), after=None)) for each in shown]
    more = len(alert.layers) - len(shown)
    return [*lines, f"and {more} more"] if more else lines


def _table(timeline: Timeline, layers: Sequence[LayerReport], *, width: int, from_start: bool) -> RenderableType:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 -- optional
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    names = without_common_prefix([masked(layer.name) for layer in layers])
    rows = []
    for layer in layers:
        stages = timeline.stages.get(layer.name, [])
        at_most = "≤ " if len(stages) == 1 and not from_start else ""
        rows.append(_cells(layer, f"{at_most}{stages[-1].step}" if stages else ""))
    columns, taken = _columns_that_fit(rows, width - min(_LEAST_NAME, max(map(len, names), default=0)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in ("layer", *(_COLUMNS[column] for column in columns)):
        table.add_column(title, justify="left" if title in ("layer", "phase") else "right", no_wrap=True)
    for name, cells in zip(shorten_all(names, max(8, width - taken)), rows, strict=True):
        table.add_row(Text(name), *(Text(*cells[column]) for column in columns if column < len(cells)))
    return table


def _columns_that_fit(rows: Sequence[Sequence[tuple[str, str]]], width: int) -> tuple[list[int], int]:
    """Return the columns beside the name for which there is room, and the characters that they take.

    Without room for all, the last ones are left out; phase and the step since which it holds always stay.
    """
    widths = [
        max(len(title), *(len(row[column][0]) for row in rows if column < len(row)), 0)
        for column, title in enumerate(_COLUMNS)
    ]
    columns = list(range(len(_COLUMNS)))
    while len(columns) > 2 and sum(widths[column] + _GAP for column in columns) + _EDGE > width:
        columns.pop()
    return columns, sum(widths[column] + _GAP for column in columns) + _EDGE


def _rows(timeline: Timeline, report: Report, most: int) -> list[LayerReport]:
    """Return the layers of the table: of more than fit those with an alert, or whose phase changed last."""
    if len(report) <= most:
        return list(report)
    alerted = {name for episode in timeline.firing for name in episode.alert.layers}
    latest = {name: stages[-1].step for name, stages in timeline.stages.items() if len(stages) > 1}
    ranked = sorted(report, key=lambda layer: (layer.name in alerted, latest.get(layer.name, -1)), reverse=True)
    chosen = {layer.name for layer in ranked[:most]}
    return [layer for layer in report if layer.name in chosen]


def _below(report: Report, rows: int) -> list[RenderableType]:
    from rich.text import Text  # noqa: PLC0415 -- optional

    lines = age_lines(report.layers, step=report.step, waiting=report.waiting, extra=report.extra)
    if len(report) > rows:
        hidden = len(report) - rows
        lines.append(f"{count(hidden, 'more layer')}: shown are those with an alert, and those that changed phase last")
    return [Text(masked(line), style="dim") for line in lines]


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
