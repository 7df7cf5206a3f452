"""`esdmon scan`: analyse the spectra of a checkpoint, or compare several.

Under torchrun the matrices are split over the ranks, and rank 0 prints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from torch import distributed

from esdmon.cli import compare, scan_output
from esdmon.cli.compare import Snapshot
from esdmon.cli.scan_output import View
from esdmon.errors import InputError, printable
from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.present.columns import COMPARISON, TABLE, choose_columns, measures_in
from esdmon.records import LayerReport, Report
from esdmon.records.table import shorten
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.pool import Pool
from esdmon.runtime.reading.reader import Reader
from esdmon.schedule.loads import share_out
from esdmon.spectrum import Measure
from esdmon.weights import Drift, Matrix, Selection, nominal_seconds, open_model, solve_lapack

_WRONG = ("nonfinite", "degenerate", "failed")
_NAME = 24  # characters of a name beside the progress bar


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Arguments of a scan."""

    path: str
    selection: Selection
    compare: Sequence[str] = ()
    """Earlier checkpoints to compare with, the oldest first."""
    reference: str | None = None
    """A checkpoint with weights W₀, subtracted before the analysis."""
    measures: str | Sequence[str] = "default"
    precision: str = "auto"
    form: str = "table"
    """table, json, jsonl or csv."""
    columns: Sequence[str] | None = None
    """Names of the columns of a table or of CSV; None for the usual ones."""
    sort: str | None = None
    """Name of the column to sort by; None for the model's order, or in a comparison for the most moved first."""
    reverse: bool = False
    """True to sort in descending order."""
    workers: str | int = "auto"
    """Processes that read side by side."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank and world size of this process."""

    rank: int = 0
    count: int = 1


def scan(settings: ScanOptions) -> int:
    """Analyse a checkpoint, or several, and print the result.

    Returns:
        Exit status: 2 if no matrix could be read, 1 if a weight is zero, not finite, or could not be analysed, else 0.

    Raises:
        InputError: if a checkpoint cannot be read, nothing can be compared, or an option is unknown.
    """
    plugins = Plugins()
    view = _view(settings, plugins.measures)
    measures = _measures(settings, view, plugins.measures)
    with _ranks() as ranks:
        snapshots = _read_all(settings, plugins, measures, ranks)
        if ranks.rank > 0:
            return 0
    if view.form in ("csv", "jsonl"):  # their lines have no place for it
        for line in compare.origin_lines(snapshots):
            print(f"esdmon scan: {line}", file=sys.stderr)
    if len(snapshots) > 1:
        print(compare.output(snapshots, view))
    else:
        print(scan_output.output(snapshots[0].report, view))
    return _status(snapshots[-1].report)


def _view(settings: ScanOptions, known: Mapping[str, Measure]) -> View:
    usual = COMPARISON if settings.compare else TABLE
    if settings.columns and settings.form in ("json", "jsonl"):
        raise InputError(
            "--columns chooses columns of a table or of CSV: leave it out, since --json and --jsonl print all values"
        )
    names = ("layer", *(name for name in settings.columns or usual if name != "layer"))
    sort = None if settings.sort is None else choose_columns("--sort", [settings.sort], known)[0]
    columns = choose_columns("--columns", names, known)
    return View(settings.form, columns, sort, reverse=settings.reverse, is_chosen=bool(settings.columns))


def _measures(settings: ScanOptions, view: View, known: Mapping[str, Measure]) -> tuple[Measure, ...]:
    """Return the measures to compute, with those of the columns that are shown or sorted by."""
    measures = choose_measures(settings.measures, known)
    shown = measures_in((*view.columns, *([view.sort] if view.sort else ())), known)
    return tuple(measure for name, measure in known.items() if measure in measures or name in shown)


def _read_all(settings: ScanOptions, plugins: Plugins, measures: Sequence[Measure], ranks: Ranks) -> list[Snapshot]:
    """Read in each checkpoint the matrices that all have."""
    paths = [*settings.compare, settings.path]
    models, origins = zip(*(open_model(path) for path in paths), strict=True)
    reference, also = (None, ()) if settings.reference is None else open_model(settings.reference, is_reference=True)
    drift = Drift() if settings.compare else None
    with closing(Pool(settings.workers)) as pool:
        options = ReadingOptions(
            measures,
            selection=settings.selection,
            reference=reference,
            precision=settings.precision,
            solver=solve_lapack,
            processes=pool.processes,
        )
        readers = [Reader(model, plugins, options, drift=drift) for model in models]
        found = [[matrix.name for matrix in reader.matrices] for reader in readers]
        compare.check_common(paths, found)
        names = compare.common(found)
        mine = {matrix.name for matrix in split([each for each in readers[-1].matrices if each.name in names], ranks)}
        snapshots = []
        for path, step, reader, origin in zip(paths, compare.steps_of(paths), readers, origins, strict=True):
            report = replace(_read(reader, pool, names, mine, step=step, ranks=ranks), origins=(*origin, *also))
            shapes = {matrix.name: matrix.stack_shape() for matrix in reader.matrices}
            snapshots.append(Snapshot(path, report, shapes))
        return snapshots


def _status(report: Report) -> int:
    """Return the exit status, and say on standard error if no matrix could be read."""
    if not any(layer.was_read for layer in report):
        reasons = "; ".join(dict.fromkeys(layer.reason for layer in report))
        print(f"esdmon scan: no matrix could be read: {reasons}", file=sys.stderr)
        return 2
    return int(any(layer.status in _WRONG for layer in report))


def _read(
    reader: Reader, pool: Pool, names: Collection[str], mine: Collection[str], *, step: int, ranks: Ranks
) -> Report:
    """Read the matrices `names`, of which this rank reads `mine`."""
    start = time.perf_counter()
    matrices = [matrix for matrix in reader.matrices if matrix.name in names]
    costs = {matrix.name: nominal_seconds(matrix) for matrix in matrices if matrix.name in mine}
    read = {layer.name: layer for layer in _with_progress(pool.read(reader, costs, step), costs, ranks)}
    if ranks.count > 1:
        gathered: list[dict[str, LayerReport]] = [{} for _ in range(ranks.count)]
        distributed.all_gather_object(gathered, read)
        read = {name: layer for part in gathered for name, layer in part.items()}
    layers = tuple(read[matrix.name] for matrix in matrices)
    return Report(
        step, layers, reader.model.coverage_of(layers, absent="not in all checkpoints"), time.perf_counter() - start
    )


def split(matrices: Sequence[Matrix], ranks: Ranks) -> list[Matrix]:
    """Return the matrices of one rank, in the given order."""
    costs = {matrix.name: nominal_seconds(matrix) for matrix in matrices}
    mine = set(share_out(costs, range(ranks.count))[ranks.rank])
    return [matrix for matrix in matrices if matrix.name in mine]


@contextmanager
def _ranks() -> Iterator[Ranks]:
    """Join the process group if torchrun has set WORLD_SIZE; leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def _with_progress(layers: Iterator[LayerReport], costs: Mapping[str, float], ranks: Ranks) -> Iterator[LayerReport]:
    """Yield the readings, with a progress bar on stderr if it is a terminal and rich is installed.

    The bar and its estimate of the time left count what each matrix costs, since most of them are small.
    """
    if ranks.rank > 0 or not sys.stderr.isatty():
        yield from layers
        return
    try:
        from rich.console import Console  # noqa: PLC0415 -- an extra
        from rich.markup import escape  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415
    except ImportError:
        yield from layers
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=sum(costs.values()))
        for layer in layers:
            read = f"read {printable(shorten(layer.name, _NAME))}"
            progress.update(task, advance=costs[layer.name], description=escape(read))
            yield layer
