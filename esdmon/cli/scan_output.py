"""Format the readings of one checkpoint: a table for people, JSON and CSV for scripts."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from esdmon.cli.arguments import with_flags
from esdmon.errors import printable
from esdmon.present.columns import DROPPED_FIRST, Column, sort_layers
from esdmon.present.verdict import verdict
from esdmon.records import SCHEMA, LayerReport, Record, Report
from esdmon.records.table import WIDTH, format_table
from esdmon.records.text import alpha_note, count, grouped, layer_notes

_MIN_NAME = 20  # characters of a name that a narrow terminal shows before columns are dropped; our choice


@dataclass(frozen=True, slots=True)
class View:
    """What is printed of the readings, and in which order."""

    form: str
    """table, json, jsonl or csv."""
    columns: tuple[Column, ...]
    sort: Column | None = None
    """None for the model's order."""
    reverse: bool = False
    """True to sort in descending order."""
    is_chosen: bool = False
    """True if the user has chosen the columns: none is dropped then."""

    def sorted(self, layers: Sequence[LayerReport]) -> list[LayerReport]:
        """Return the layers in the order of this view."""
        return sort_layers(layers, self.sort, descending=self.reverse) if self.sort else list(layers)


def output(report: Report, view: View) -> str:
    """Return the readings of one checkpoint as text."""
    layers = view.sorted(report.layers)
    if view.form == "json":
        return as_json(source_record(report) | {"layers": [record_of(each) for each in layers]})
    if view.form == "jsonl":
        return as_jsonl([replace(report, layers=tuple(layers))])
    if view.form == "csv":
        return as_csv([record_of(layer) for layer in layers], view)
    table = fitting_table(view, [[layer] for layer in layers], lambda column, cells: column.show(cells[0]))
    notes = [*layer_notes(layers), *dead_notes(layers), *(alpha_note(layers) if shows(view, "alpha") else ())]
    return "\n".join([*report.origin_lines, *table, *notes, verdict(report.layers), with_flags(str(report.coverage))])


def record_of(layer: LayerReport) -> Record:
    """Return the JSON record of a layer, with its type."""
    record = layer.to_record()
    return {"name": record.pop("name"), "type": layer.kind} | record


def source_record(report: Report) -> Record:
    """Return the JSON record of what was read: the coverage, and for the weights and W₀ the files and those beside."""
    coverage = {"share": report.coverage.share, **asdict(report.coverage)}
    return {"coverage": coverage, "origins": [asdict(origin) for origin in report.origins]}


def as_json(content: Mapping[str, object]) -> str:
    """Return one JSON object."""
    return json.dumps(content, indent=1, allow_nan=False)


def run_records(reports: Iterable[Report]) -> list[Record]:
    """Return what the JSONL of a run with these readings contains: a record for each layer, then the summary."""
    records = []
    for report in reports:
        records += [{"kind": "layer"} | record_of(layer) for layer in report]
        records.append({"kind": "summary"} | report.to_summary_record())
    return [{"schema": SCHEMA, "run": "scan"} | record for record in records]


def as_jsonl(reports: Iterable[Report]) -> str:
    """Return the JSONL of a run with these readings, for whatever reads runs."""
    return "\n".join(json.dumps(record, allow_nan=False) for record in run_records(reports))


def as_csv(records: Sequence[Mapping[str, object]], view: View) -> str:
    """Return one line for each record below a header: the chosen columns, or all keys."""
    names = list(dict.fromkeys(name for record in records for name in record))
    if view.is_chosen:
        chosen = [_KEYS.get(column.name, (column.name,)) for column in view.columns]
        names = list(dict.fromkeys(name for keys in chosen for name in keys))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: " ".join(value) if isinstance(value, list) else value for name, value in record.items()})
    return text.getvalue().removesuffix("\n")


_KEYS = {"layer": ("name",), "shape": ("N", "M", "slices"), "moved": ("update_ratio",)}
"""Keys of a record that columns of a table stand for, where they have another name."""


def fitting_table(
    view: View, rows: Sequence[Sequence[LayerReport]], cell: Callable[[Column, Sequence[LayerReport]], str]
) -> list[str]:
    """Return the lines of a table that fits the terminal; elsewhere it is as wide as needed.

    Names are shortened in a terminal only. Of the usual columns, those of `DROPPED_FIRST` are left out while names
    would have less than 20 characters, and a line says so.

    Args:
        view: the columns.
        rows: the readings behind each row.
        cell: returns the text of a row in a column.
    """
    width = max(shutil.get_terminal_size().columns, WIDTH) if sys.stdout.isatty() else None
    cells = {column: [printable(cell(column, readings)) for readings in rows] for column in view.columns}
    dropped: list[str] = []
    for name in () if view.is_chosen or width is None else DROPPED_FIRST:
        if _narrowest(cells) > (width or 0):
            dropped += [column.title for column in cells if column.name == name]
            cells = {column: texts for column, texts in cells.items() if column.name != name}
    header = [column.title for column in cells]
    left = [number for number, column in enumerate(cells) if column.left]
    table = format_table(header, list(zip(*cells.values(), strict=True)), left=left, width=width)
    return [table, *([f"too narrow for: {', '.join(dropped)} (see --columns)"] if dropped else ())]


def _narrowest(cells: Mapping[Column, Sequence[str]]) -> int:
    """Return the width of a table whose names have at most 20 characters."""
    widths = [max(map(len, (column.title, *texts))) for column, texts in cells.items()]
    return min(widths[0], _MIN_NAME) + sum(widths[1:]) + 2 * (len(widths) - 1)


def dead_notes(layers: Sequence[LayerReport]) -> list[str]:
    """Return lines on layers whose N × M is without dead rows, columns and slices, for W or for W − W₀."""
    what = "unchanged" if any(layer.view == "difference" for layer in layers) else "dead"
    return grouped(
        (f"N × M is without {_counted(layer, what)}", layer.name)
        for layer in layers
        if layer.dead_rows or layer.dead_columns or layer.dead_slices
    )


def _counted(layer: LayerReport, what: str) -> str:
    counts = ((layer.dead_rows, "row"), (layer.dead_columns, "column"), (layer.dead_slices, "slice"))
    return " and ".join(count(number, f"{what} {noun}") for number, noun in counts if number)


def shows(view: View, name: str) -> bool:
    """Return whether a table has the column of that name."""
    return any(column.name == name for column in view.columns)
