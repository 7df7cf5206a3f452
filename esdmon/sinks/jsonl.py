"""A sink that appends one JSON object a line; `pandas.read_json(path, lines=True)` reads it, also while it grows."""

import errno
import io
import json
import logging
import os
import secrets
import shlex
from contextlib import suppress
from pathlib import Path
from typing import final

from esdmon.errors import unwritable
from esdmon.notice import nearby
from esdmon.present.media import HistogramSchedule
from esdmon.records import SCHEMA, Alert, LayerReport, Record, Report
from esdmon.records.serialization import esd_to_record
from esdmon.sinks import lines

_log = logging.getLogger("esdmon")


@final
class JsonlSink:
    """Append records to the file `path`, and create its folder. A line torn by a kill is removed at the next opening.

    Every line has `"schema"`, `"kind"` (layer, summary or alert), `"run"` (an id, equal in all lines of a run) and
    `"step"`; undefined values are null, never NaN. The fields are those of `esdmon.records`, and `"esd"` in a layer's
    first line, in every fifth, and where its phase changes. Several runs may be appended to one file.

    Raises:
        InputError: for a path that cannot be written, and for a file with other content, which is left unchanged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()  # the working directory may change
        self._run: str | None = None
        self._histograms = HistogramSchedule()
        self._file: io.FileIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_for_append(self.path)
        except OSError as error:
            raise unwritable(f"jsonl:{path}", error) from error

    def start(self, run: str) -> None:
        """Use this id for all lines from now on."""
        self._run = run
        self._histograms = HistogramSchedule()

    def write(self, report: Report) -> None:
        """Append a line for each matrix that was read at this step, and one for the summary."""
        due = {layer.name for layer in self._histograms.due(report)}
        records = [{"kind": "layer"} | _record(layer, with_esd=layer.name in due) for layer in report.new]
        self._append([*records, {"kind": "summary"} | report.to_summary_record()])

    def alert(self, alert: Alert) -> None:
        """Append a line for an alert."""
        self._append([{"kind": "alert"} | alert.to_record()])

    def rewind(self, step: int) -> None:
        """Remove the lines that this run wrote after a step. Without `start`, the run of the last line is continued."""
        self._histograms = HistogramSchedule()
        if self.path.is_file():
            if self._run is None:
                self._run = lines.last_run(self.path)
            lines.remove_after(self.path, self._run, step)

    def where(self) -> str:
        """Return the command that shows the file in a terminal."""
        return f"`esdmon tail {shlex.quote(nearby(self.path))}`"

    def flush(self) -> None:
        """Do nothing: the file is not buffered."""

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, records: list[Record]) -> None:
        self._run = self._run or secrets.token_hex(4)
        head = {"schema": SCHEMA, "kind": "", "run": self._run, "step": 0}
        texts = [json.dumps(head | record, allow_nan=False, ensure_ascii=False) for record in records]
        file = self._current_file()
        try:
            _write_all(file, "".join(f"{text}\n" for text in texts).encode())
        except OSError:
            self.close()  # the next write opens the file again
            raise

    def _current_file(self) -> io.FileIO:
        """Return the file that is at the path now: writing to a deleted or replaced one would lose the lines."""
        if self._file is not None and not _is_at(self.path, self._file):
            self.close()
            if not self.path.exists():
                _log.warning(
                    "esdmon: %s was deleted, and its content is lost. Writing continues in a new file.", self.path
                )
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_for_append(self.path)
        return self._file


def _record(layer: LayerReport, *, with_esd: bool) -> Record:
    esd = layer.esd if with_esd else None
    return layer.to_record() | ({} if esd is None else {"esd": esd_to_record(esd)})


def _open_for_append(path: Path) -> io.FileIO:
    """Open a file to append to, with its end at the start of a line.

    Raises:
        InputError: for a file that is not ours.
    """
    if path.is_file():
        lines.repair_end(path)
        return path.open("ab", buffering=0)
    # Opening a pipe that nobody reads would wait for ever, as would writing to one that is full: this way they fail.
    special = os.O_NONBLOCK if path.exists() and hasattr(os, "O_NONBLOCK") else 0
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | special, 0o666))


def _is_at(path: Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of the data or, on an error, none of it: half a line would hide the one that follows."""
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
            if file.tell() == size:  # nobody else has written behind it
                file.truncate(size - written)
        raise
