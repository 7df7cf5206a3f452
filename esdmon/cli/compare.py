"""Compare checkpoints of one model: match their matrices, and show each as a series from the oldest to the latest."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from esdmon.cli.arguments import with_flags
from esdmon.cli.scan_output import (
    View,
    as_csv,
    as_json,
    as_jsonl,
    dead_notes,
    fitting_table,
    record_of,
    run_records,
    shows,
    source_record,
)
from esdmon.errors import InputError, printable
from esdmon.present.columns import Column
from esdmon.present.verdict import verdict
from esdmon.records import LayerReport, Record, Report
from esdmon.records.text import count, grouped, named

Shape = tuple[int, int, int]
_MAX_SHOWN = 4  # values of a series that a terminal shows; our choice
_NAMED = 4  # matrices that an error names
_NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One checkpoint: the readings of the matrices that all have."""

    path: str
    report: Report
    shapes: Mapping[str, Shape]
    """(slices, rows, columns) of all its matrices by name."""


@dataclass(frozen=True, slots=True)
class Track:
    """The readings of one matrix, from the oldest checkpoint to the latest."""

    readings: tuple[LayerReport, ...]
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        """Name of the matrix."""
        return self.readings[-1].name

    @property
    def has_one_shape(self) -> bool:
        """True if the matrix has the same shape in all checkpoints in which it can be read."""
        return len({shape for shape in self.shapes if all(shape)}) <= 1

    @property
    def is_compared(self) -> bool:
        """True if ‖ΔW‖/‖W‖ is known from each checkpoint to the next."""
        return not any(math.isnan(each.update_ratio) for each in self.readings[1:])

    @property
    def moved(self) -> float:
        """Largest ‖ΔW‖/‖W‖ from one checkpoint to the next, infinite from zero; NaN if none is known."""
        return max((each.update_ratio for each in self.readings if not math.isnan(each.update_ratio)), default=math.nan)

    def to_record(self) -> Record:
        """Return the record of the latest reading, with the values of the one before as `before_<name>`.

        Where shapes differ, what would be compared is None.
        """
        *_, before, after = self.readings
        old = before.to_record()
        always = {name: old[name] for name in ("N", "M", "slices", "status")}
        compared = {
            name: old[name] if self.has_one_shape else None for name in ("phase", "phase_code", *before.measures)
        }
        own = record_of(after) | {"comparable": not math.isnan(after.update_ratio)}
        return own | {f"before_{name}": value for name, value in (always | compared).items()}


def check_common(paths: Sequence[str], found: Sequence[Sequence[str]]) -> None:
    """Raise unless there are matrices that all checkpoints have.

    Args:
        paths: the checkpoints.
        found: names of the matrices of each.

    Raises:
        InputError: with the first names of a checkpoint that shares none with the latest, or of all.
    """
    if not common(found):
        *others, latest = zip(paths, found, strict=True)
        theirs = next((each for each in others if not common([each[1], latest[1]])), others[0])
        raise InputError(
            f"--compare: {theirs[0]} and {latest[0]} have no matrix in common: the first has "
            f"{named(theirs[1], most=_NAMED)}, the other {named(latest[1], most=_NAMED)}"
        )


def common(found: Sequence[Sequence[str]]) -> set[str]:
    """Return the names that all checkpoints have."""
    return set.intersection(*map(set, found))


def origin_lines(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return lines on the files that were read, and on those beside them, each once."""
    return list(dict.fromkeys(line for each in snapshots for line in each.report.origin_lines))


def steps_of(paths: Sequence[str]) -> list[int]:
    """Return the step of each checkpoint: the number in its path that rises along the series, else its place in it.

    >>> steps_of(["run2/step-500", "run2/step-1000"]), steps_of(["a", "b"])
    ([500, 1000], [0, 1])
    """
    numbers = [[int(number) for number in re.findall(r"\d+", path)] for path in paths]
    if len(paths) > 1 and len({len(each) for each in numbers}) == 1:
        rising = [place for place in zip(*numbers, strict=True) if all(a < b for a, b in pairwise(place))]
        if rising:
            return list(rising[-1])
    return list(range(len(paths)))


def output(snapshots: Sequence[Snapshot], view: View) -> str:
    """Return the series of all common matrices as text, by default the most moved first."""
    tracks = {layer.name: _track(layer.name, snapshots) for layer in snapshots[-1].report}
    if view.sort is None:
        ordered = sorted(tracks.values(), key=lambda track: math.inf if math.isnan(track.moved) else -track.moved)
    else:
        ordered = [tracks[layer.name] for layer in view.sorted([track.readings[-1] for track in tracks.values()])]
    if view.form == "json":
        return as_json(_to_json(snapshots, ordered))
    if view.form == "jsonl":
        return as_jsonl(_series(snapshots, ordered))
    if view.form == "csv":
        records = [track.to_record() for track in ordered] if len(snapshots) == 2 else _long_records(snapshots, ordered)
        return as_csv(records, view)
    return "\n".join(_lines(snapshots, ordered, view))


def _track(name: str, snapshots: Sequence[Snapshot]) -> Track:
    shapes = tuple(snapshot.shapes[name] for snapshot in snapshots)
    readings = tuple(snapshot.report[name] for snapshot in snapshots)
    track = Track(readings, shapes)
    if not track.has_one_shape:  # the sampled elements are not at the same places
        return replace(track, readings=tuple(replace(reading, update_ratio=math.nan) for reading in readings))
    return replace(track, readings=(readings[0], *(_after(before, now) for before, now in pairwise(readings))))


def _after(before: LayerReport, now: LayerReport) -> LayerReport:
    """Return a reading with the distance from the spectrum before, its own phase, and ‖ΔW‖/‖W‖ if both are finite."""
    settled = replace(now.settle(before), settled=None)
    # The sample of ‖ΔW‖/‖W‖ may have missed the elements that are not finite.
    is_comparable = all(each.was_read and each.status != "nonfinite" for each in (before, now))
    return settled if is_comparable else replace(settled, update_ratio=math.nan)


def _to_json(snapshots: Sequence[Snapshot], tracks: Sequence[Track]) -> Record:
    checkpoints = [{"path": each.path, "step": each.report.step} | source_record(each.report) for each in snapshots]
    return source_record(snapshots[-1].report) | {
        "layers": [track.to_record() for track in tracks],
        "checkpoints": checkpoints,
        "series": run_records(_series(snapshots, tracks)),
        "only_in": {name: [snapshots[place].path for place in places] for name, places in _alone(snapshots).items()},
    }


def _series(snapshots: Sequence[Snapshot], tracks: Sequence[Track]) -> list[Report]:
    """Return a report for each checkpoint, in which nothing has moved that cannot be compared."""
    readings = zip(*(track.readings for track in tracks), strict=True)
    return [replace(each.report, layers=layers) for each, layers in zip(snapshots, readings, strict=True)]


def _long_records(snapshots: Sequence[Snapshot], tracks: Sequence[Track]) -> list[Record]:
    """Return a record for each matrix and checkpoint."""
    return [
        {"checkpoint": snapshot.path} | record_of(reading)
        for track in tracks
        for snapshot, reading in zip(snapshots, track.readings, strict=True)
    ]


def _lines(snapshots: Sequence[Snapshot], tracks: Sequence[Track], view: View) -> Iterator[str]:
    shortened = sys.stdout.isatty()
    by_name = {track.name: track for track in tracks}

    def cell(column: Column, readings: Sequence[LayerReport]) -> str:
        return _cell(column, by_name[readings[-1].name], shortened=shortened)

    if len(snapshots) > 2:
        yield f"from {_arrow([printable(each.path) for each in snapshots], shortened=shortened)}"
    yield from origin_lines(snapshots)
    yield from fitting_table(view, [track.readings for track in tracks], cell)
    yield from grouped(
        (f"of another shape, not compared: {_shapes(track)}", track.name) for track in tracks if not track.has_one_shape
    )
    yield from grouped(
        (f"of another dtype, so that moved includes the rounding: {_dtypes(track)}", track.name)
        for track in tracks
        if len({each.dtype for each in track.readings if each.dtype}) > 1
    )
    for snapshot in snapshots:
        reasons = ((each.reason, each.name) for each in snapshot.report if each.status != "ok")
        yield from (f"{line} (in {printable(snapshot.path)})" for line in grouped(reasons))
    apart = [track.name for track in tracks if not track.is_compared]
    if apart:
        yield printable(
            f"not compared, for the reasons above: {len(apart)} of {count(len(tracks), 'layer')} ({named(apart)})"
        )
    readings = [each for track in tracks for each in track.readings if each.status == "ok"]
    if shows(view, "alpha") and not all(each.alpha_is_meaningful for each in readings):
        yield "alpha –: no power-law tail that can be distinguished from noise"
    if shows(view, "shape"):
        yield from dict.fromkeys(line for snapshot in snapshots for line in dead_notes(snapshot.report.layers))
    alone = [(f"only in {_which(places, snapshots)}", name) for name, places in _alone(snapshots).items()]
    yield from grouped(alone)
    yield verdict(snapshots[-1].report.layers)
    yield with_flags(str(snapshots[-1].report.coverage))


def _cell(column: Column, track: Track, *, shortened: bool) -> str:
    if column.name in ("layer", "type"):
        return column.cell(track.readings[-1])
    if column.name == "moved":
        moves = [_NOT_COMPARED if math.isnan(each.update_ratio) else column.cell(each) for each in track.readings[1:]]
        return _arrow(moves, shortened=shortened)
    if not track.has_one_shape and column.name != "shape":
        return _NOT_COMPARED if column.name == "phase" else ""
    texts = [column.show(each, briefly=True) for each in track.readings]
    return _arrow([text or "–" for text in texts], shortened=shortened) if any(texts) else ""


def _arrow(texts: Sequence[str], *, shortened: bool) -> str:
    """Return `a → b → c`, without repetitions; the first and the last of many in a terminal."""
    distinct = [text for place, text in enumerate(texts) if place == 0 or text != texts[place - 1]]
    if shortened and len(distinct) > _MAX_SHOWN:
        distinct = [distinct[0], "…", distinct[-1]]
    return " → ".join(distinct)


def _shapes(track: Track) -> str:
    texts = [f"{rows} × {columns}" + (f" × {slices}" if slices > 1 else "") for slices, rows, columns in track.shapes]
    return _arrow(texts, shortened=False)


def _dtypes(track: Track) -> str:
    return _arrow([each.dtype for each in track.readings if each.dtype], shortened=False)


def _alone(snapshots: Sequence[Snapshot]) -> dict[str, list[int]]:
    """Return the places of the checkpoints that have a matrix, for each that not all of them have."""
    places: dict[str, list[int]] = {}
    for place, snapshot in reversed(list(enumerate(snapshots))):
        for name in snapshot.shapes:
            places.setdefault(name, []).insert(0, place)
    return {name: which for name, which in places.items() if len(which) < len(snapshots)}


def _which(places: Sequence[int], snapshots: Sequence[Snapshot]) -> str:
    if len(snapshots) == 2:
        return ("the earlier", "the later")[places[0]]
    return ", ".join(snapshots[place].path for place in places)
