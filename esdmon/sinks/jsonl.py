"""Append one JSON object per line; `pandas.read_json(path, lines=True)` reads the file, also while it grows."""

import errno
import io
import json
import logging
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import final

from esdmon.calls import explain_wrong_calls
from esdmon.encoding import storable
from esdmon.errors import local_path, unwritable
from esdmon.notice import nearby
from esdmon.present.media import HistogramSchedule
from esdmon.records import SCHEMA, Alert, LayerReport, Record, Report
from esdmon.records.serialization import esd_to_record
from esdmon.records.shortening import Shortener
from esdmon.sinks import lines

_log = logging.getLogger("esdmon")
_compact = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


@explain_wrong_calls
@final
class JsonlSink:
    """Append records to the file `path`, and create its folder.

    Every line has `"schema"`, `"kind"` (layer, screened, summary or alert), `"run"` (an id, the same in all lines of a
    run) and `"step"`. Undefined values are null, never NaN. The other fields are those of `esdmon.records`; a field
    that seldom changes is written only if it has changed. `Restorer` in `esdmon.records.shortening` restores whole
    records. The spectrum, `"esd"`, is in a layer's first line, in every fifth, and if its phase has changed. Several
    runs may be appended to one file. An incomplete line of a killed process is removed at the next opening.

    A file whose name ends with `.gz` is compressed, with one gzip member per report, so it can be read while it grows.

    Raises:
        InputError: for a path that cannot be written, and for a file with other content, which is left unchanged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(f"jsonl:{path}", path)
        self._run: str | None = None
        self._is_checked = False
        self._begin()
        self._file: io.FileIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_for_append(self.path)
        except OSError as error:
            raise unwritable(f"jsonl:{path}", error) from error

    def start(self, run: str) -> None:
        """Use this id for all lines from now on."""
        self._run, self._is_checked = run, False
        self._begin()

    def write(self, report: Report) -> None:
        """Append a line for each matrix that was read or screened at this step, and one for the summary."""
        file = self._current_file()  # before records are shortened, since a new file begins with whole records
        due = {layer.name for layer in self._histograms.due(report)}
        records = [self._layer(layer, with_esd=layer.name in due) for layer in report.new]
        records += [{"kind": "screened"} | each.to_record() for each in report.screened if each.is_new]
        self._append(file, [*records, {"kind": "summary"} | self._shortener.shorten(report.to_summary_record())])

    def alert(self, alert: Alert) -> None:
        """Append a line for an alert."""
        self._append(self._current_file(), [{"kind": "alert"} | alert.to_record()])

    def rewind(self, step: int) -> None:
        """Remove the lines that this run wrote after a step. Without `start`, the run of the last line is continued."""
        self._begin()
        if self.path.is_file():
            if self._run is None:
                self._run = lines.last_run(self.path)
            lines.remove_after(self.path, self._run, step)
            if not self._is_checked and self._run is not None:
                self._warn_of_another_run(self._run, is_resumed=True)

    def where(self) -> str:
        """Return the command that writes an HTML report of the file."""
        return f"`esdmon report {shlex.quote(nearby(self.path))}`"

    def flush(self) -> None:
        """Do nothing: the file is not buffered."""

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        """Reset the state of shortening, so that the next line of each layer has all fields and the spectrum."""
        self._histograms = HistogramSchedule()
        self._shortener = Shortener()

    def _layer(self, layer: LayerReport, *, with_esd: bool) -> Record:
        record = {"kind": "layer"} | self._shortener.shorten(layer.to_record(), explained=with_esd)
        return record | {"esd": esd_to_record(layer.esd)} if with_esd and layer.esd is not None else record

    def _append(self, file: io.FileIO, records: list[Record]) -> None:
        self._run = self._run or lines.new_run()
        if not self._is_checked:  # not at construction: a loaded state may continue the run of the file
            self._warn_of_another_run(self._run)
        head = {"schema": SCHEMA, "kind": "", "run": self._run, "step": 0}
        try:
            text = "".join(f"{_compact.encode(head | record)}\n" for record in records)
            _write_all(file, lines.packed(self.path, storable(text).encode()))
        except BaseException:
            self.close()  # the next write opens the file again and begins with whole records
            raise

    def _warn_of_another_run(self, run: str, *, is_resumed: bool = False) -> None:
        """Log once, at the first write or when a state is loaded, that the file ends with the lines of another run."""
        self._is_checked = True
        if not (self.path.is_file() and self.path.stat().st_size and lines.last_run(self.path) != run):
            return
        if is_resumed:
            _log.warning(
                "esdmon: %s already holds another run. The run that is resumed, with the id %s in its lines, is "
                "appended. To keep them apart, give sinks= the file that it wrote to before, and load its state before "
                "the first reading.",
                self.path,
                run,
            )
        else:
            _log.warning(
                "esdmon: %s already holds another run. This one is appended, with the id %s in its lines. Choose "
                "another path to keep them apart.",
                self.path,
                run,
            )

    def _current_file(self) -> io.FileIO:
        """Return the file that is at the path now, since lines written to a deleted or replaced file would be lost."""
        if self._file is not None and not _is_at(self.path, self._file):
            self.close()
            if not self.path.exists():
                _log.warning(
                    "esdmon: %s was deleted, and its content is lost. Writing continues in a new file.", self.path
                )
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_for_append(self.path)
            self._begin()
        return self._file


def _open_for_append(path: Path) -> io.FileIO:
    """Open a file to append to, with its end at the start of a line.

    Raises:
        InputError: for a file with other content.
    """
    if path.is_file():
        lines.repair_end(path)
        return path.open("ab", buffering=0)
    # Without this flag, opening a pipe without a reader, and writing to a full one, would block for ever.
    special = os.O_NONBLOCK if path.exists() and hasattr(os, "O_NONBLOCK") else 0
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | special, 0o666))


def _is_at(path: Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of the data or, on an error, nothing: half a line would make the next line unreadable."""
    written = 0
    try:
        while written < len(data):
            count = file.write(data[written:])
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the pipe is full: nothing reads it")
            written += count
    except OSError:
        with suppress(OSError):
            size = os.fstat(file.fileno()).st_size
            if file.tell() == size:  # no other process has appended to the file
                file.truncate(size - written)
        raise
