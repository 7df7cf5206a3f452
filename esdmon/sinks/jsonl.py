"""One JSON object a line, appended: `pandas.read_json(path, lines=True)` reads it, also while it grows."""

import errno
import io
import json
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import final

from esdmon.errors import unwritable
from esdmon.records import SCHEMA, Alert, Record, Report
from esdmon.sinks import lines

_log = logging.getLogger("esdmon")


@final
class JsonlSink:
    """Appends to `path`; makes its folder. A line cut short by a kill is removed when the file is opened again.

    Every line holds `"schema"`, `"kind"` (layer, summary or alert), `"run"` (the same for all lines of one run) and
    `"step"`; what is undefined is null, never NaN. Several runs may be appended to one file.

    Raises:
        InputError: for a path that cannot be written, or a file that holds something else, which is left as it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()  # the working directory may change
        self._run: str | None = None
        self._file: io.FileIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(self.path)
        except OSError as error:
            raise unwritable(f"jsonl:{path}", error) from error

    def start(self, run: str) -> None:
        """Take what is written from now on to be of the run with this id."""
        self._run = run

    def write(self, report: Report) -> None:
        """Write a line for each matrix that was read at this step, and one for the summary."""
        records = [{"kind": "layer"} | layer.to_record() for layer in report.new]
        self._append([*records, {"kind": "summary"} | report.to_summary_record()])

    def alert(self, alert: Alert) -> None:
        """Write a line."""
        self._append([{"kind": "alert"} | alert.to_record()])

    def rewind(self, step: int) -> None:
        """Cut out the lines that this run wrote after a step; without `start`, the run whose line is the last."""
        if self.path.is_file():
            if self._run is None:
                self._run = lines.last_run(self.path)
            lines.cut(self.path, self._run, step)

    def flush(self) -> None:
        """Do nothing: each write is seen at once."""

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, records: list[Record]) -> None:
        self._run = self._run or secrets.token_hex(4)
        head = {"schema": SCHEMA, "kind": "", "run": self._run, "step": 0}
        texts = [json.dumps(head | record, allow_nan=False, ensure_ascii=False) for record in records]
        file = self._current()
        try:
            _write_whole(file, "".join(f"{text}\n" for text in texts).encode())
        except OSError:
            self.close()  # the next write opens the file again
            raise

    def _current(self) -> io.FileIO:
        """The file that is at the path now: what is written to one that was deleted or replaced is written nowhere."""
        if self._file is not None and not _is_at(self.path, self._file):
            self.close()
            if not self.path.exists():
                _log.warning("esdmon: %s was deleted: what it held is lost. Writing goes on in a new file.", self.path)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(self.path)
        return self._file


def _opened(path: Path) -> io.FileIO:
    """Open a file to append to it, at the beginning of a line.

    Raises:
        InputError: for a file that is not ours.
    """
    if path.is_file():
        lines.mend(path)
        return path.open("ab", buffering=0)
    # Opening a pipe that nobody reads would wait for ever, as would writing to one that is full: this way they fail.
    special = os.O_NONBLOCK if path.exists() and hasattr(os, "O_NONBLOCK") else 0
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | special, 0o666))


def _is_at(path: Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _write_whole(file: io.FileIO, data: bytes) -> None:
    """Write all of it, or leave nothing of it behind: half a line would hide the one that follows."""
    written = 0
    try:
        while written < len(data):
            count = file.write(data[written:])
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "it is a pipe that is full")
            written += count
    except OSError:
        with suppress(OSError):
            size = os.fstat(file.fileno()).st_size
            if file.tell() == size:  # nobody else has written behind it
                file.truncate(size - written)
        raise
