"""`esdmon scan`: analyse the spectra of a checkpoint, or compare two.

Under torchrun the matrices are split over the ranks, and rank 0 prints.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from torch import distributed

from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.records import Coverage, LayerReport, Record, Report, show
from esdmon.records.table import format_table
from esdmon.runtime.reader import Reader
from esdmon.schedule.priority import share_out
from esdmon.weights import Drift, Matrix, Selection, nominal_seconds, solve_lapack

_WRONG = ("nonfinite", "degenerate", "failed")


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Arguments of a scan."""

    path: str
    selection: Selection
    compare: str | None = None
    """An earlier checkpoint to compare with."""
    reference: str | None = None
    """A checkpoint with weights W₀, subtracted before the analysis."""
    measures: str | Sequence[str] = "default"
    precision: str = "auto"
    form: str = "table"
    """table, json or csv."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank and world size of this process."""

    rank: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Change:
    """The readings of a matrix in two checkpoints."""

    before: LayerReport
    after: LayerReport

    @property
    def moved(self) -> float:
        """‖ΔW‖/‖W‖, on a sample of the elements."""
        return self.after.update_ratio

    def to_record(self) -> Record:
        """Return the record of the later reading, with values of the earlier one as `before_<name>`."""
        before = self.before.to_record()
        earlier = {name: before[name] for name in ("status", "phase", "phase_code", *self.before.measures)}
        return self.after.to_record() | {f"before_{name}": value for name, value in earlier.items()}


def scan(settings: ScanOptions) -> int:
    """Analyse a checkpoint and print the result.

    Returns:
        Exit status: 1 if a weight is zero, not finite, or could not be analysed, else 0.

    Raises:
        InputError: if the checkpoint cannot be read.
    """
    with _ranks() as ranks:
        drift = Drift() if settings.compare is not None else None
        reader = _reader(settings, settings.path, drift)
        earlier = None if settings.compare is None else _reader(settings, settings.compare, drift)
        before = None if earlier is None else _read(earlier, _common(earlier, reader), ranks, "before")
        after = _read(reader, reader.matrices if earlier is None else _common(reader, earlier), ranks, "reading")
        if ranks.rank > 0:
            return 0
        _write(settings, after, before, reader, earlier)
    return int(any(layer.status in _WRONG for layer in after))


def _reader(settings: ScanOptions, path: str, drift: Drift | None) -> Reader:
    known = Plugins()
    return Reader(
        path,
        known,
        selection=settings.selection,
        reference=settings.reference,
        measures=choose_measures(settings.measures, known.measures),
        precision=settings.precision,
        drift=drift,
        solver=solve_lapack,
    )


def _common(reader: Reader, other: Reader) -> list[Matrix]:
    names = {matrix.name for matrix in other.matrices}
    return [matrix for matrix in reader.matrices if matrix.name in names]


def _read(reader: Reader, matrices: Sequence[Matrix], ranks: Ranks, what: str) -> Report:
    start = time.perf_counter()
    mine = split(matrices, ranks)
    read = {matrix.name: reader.read_one(matrix.name, step=0) for matrix in _with_progress(mine, what, ranks)}
    if ranks.count > 1:
        gathered: list[dict[str, LayerReport]] = [{} for _ in range(ranks.count)]
        distributed.all_gather_object(gathered, read)
        read = {name: layer for part in gathered for name, layer in part.items()}
    layers = tuple(read[matrix.name] for matrix in matrices)
    return Report(0, layers, reader.coverage, time.perf_counter() - start)


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


def _with_progress(matrices: Sequence[Matrix], what: str, ranks: Ranks) -> Iterable[Matrix]:
    """Show a progress bar on stderr if it is a terminal and rich is installed."""
    if ranks.rank > 0 or not sys.stderr.isatty():
        return matrices
    try:
        from rich.console import Console  # noqa: PLC0415 -- an extra
        from rich.progress import track  # noqa: PLC0415
    except ImportError:
        return matrices
    return track(matrices, description=what, console=Console(stderr=True), transient=True)


def _write(settings: ScanOptions, after: Report, before: Report | None, reader: Reader, earlier: Reader | None) -> None:
    if before is None or earlier is None:
        records = after.to_records()
        table = str(after)
    else:
        changes = sorted(
            (Change(old, new) for old, new in zip(before, after, strict=True)),
            key=lambda change: -change.moved if math.isfinite(change.moved) else -math.inf,
        )
        records = [change.to_record() for change in changes]
        table = "\n".join([_changes_table(changes), *_only_in_one(reader, earlier), str(after.coverage)])
    if settings.form == "table":
        print(table)
    elif settings.form == "json":
        print(json.dumps({"coverage": _coverage_record(after.coverage), "layers": records}, indent=1, allow_nan=False))
    else:
        _write_csv(records)


def _changes_table(changes: Sequence[Change]) -> str:
    header = ["layer", "moved", "alpha", "soft rank", "phase"]
    return format_table(header, [_change_row(change) for change in changes], left=(0, 4))


def _change_row(change: Change) -> list[str]:
    before, after = change.before, change.after
    if after.status != "ok" or before.status != "ok":
        return [after.name, "", "", "", _arrow(before.status, after.status)]
    alphas = (f"{show(layer, 'alpha', '.2f')}" if layer.alpha_is_meaningful else "–" for layer in (before, after))
    return [
        after.name,
        f"{change.moved:.2%}",
        _arrow(*alphas),
        _arrow(show(before, "mp_soft_rank", ".2f"), show(after, "mp_soft_rank", ".2f")),
        _arrow(before.phase.value, after.phase.value),
    ]


def _arrow(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"


def _only_in_one(reader: Reader, earlier: Reader) -> Iterator[str]:
    for here, there, which in ((reader, earlier, "later"), (earlier, reader, "earlier")):
        names = {matrix.name for matrix in there.matrices}
        alone = [matrix.name for matrix in here.matrices if matrix.name not in names]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            yield f"only in the {which}: {', '.join(alone[:3])}{more}"


def _coverage_record(coverage: Coverage) -> Record:
    return {"share": coverage.share, **asdict(coverage)}


def _write_csv(records: Sequence[Mapping[str, object]]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(sys.stdout, names)
    writer.writeheader()
    for record in records:
        writer.writerow({name: " ".join(value) if isinstance(value, list) else value for name, value in record.items()})
