"""One JSON object a line, appended: `pandas.read_json(path, lines=True)` reads it, also while it grows."""

import json
import logging
import os
from pathlib import Path
from typing import final

from esdmon.errors import InputError, unwritable
from esdmon.records import SCHEMA, Alert, Record, Report

_log = logging.getLogger("esdmon")
_LONGEST_LINE = 1 << 20  # bytes; ours have a few thousand


@final
class JsonlSink:
    """Appends to `path`; makes its folder. A line cut short by a kill is removed when the file is opened again.

    Every line holds `"schema"`, `"kind"` (layer, summary or alert) and `"step"`; what is undefined is null, never NaN.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(f"jsonl:{path}", error) from error

    def write(self, report: Report) -> None:
        """A line for each matrix that was read at this step, and one for the summary."""
        records = [{"kind": "layer"} | layer.to_record() for layer in report.new]
        self._append([*records, {"kind": "summary"} | report.to_summary_record()])

    def alert(self, alert: Alert) -> None:
        """A line."""
        self._append([{"kind": "alert"} | alert.to_record()])

    def rewind(self, step: int) -> None:
        """Cut off the lines at the end of the file that were written after a step."""
        self._file.close()
        with self.path.open("rb+") as file:
            end = 0
            for line in iter(file.readline, b""):
                if json.loads(line)["step"] <= step:
                    end = file.tell()
            file.truncate(end)
        self._file = self.path.open("a", encoding="utf-8")

    def flush(self) -> None:
        """Nothing to do: each write is flushed."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, records: list[Record]) -> None:
        lines = [json.dumps({"schema": SCHEMA} | record, allow_nan=False, ensure_ascii=False) for record in records]
        if not self.path.exists():  # what is written to a deleted file is written nowhere
            _log.warning("esdmon: %s was deleted: what it held is lost, and it is begun anew.", self.path)
            self._file.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()


def _drop_partial_line(path: Path) -> None:
    """Cut off what a kill in mid-write left behind the last whole line.

    Raises:
        InputError: for a file that is not ours: one whose first line is no JSON object.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        first = file.readline(_LONGEST_LINE)
        if first.endswith(b"\n") and not _is_object(first):
            msg = f"jsonl:{path} holds something else than JSON lines. Choose another path."
            raise InputError(msg)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_LINE))
        tail = file.read().rpartition(b"\n")[2]
        if _is_object(tail):
            file.write(b"\n")
        else:
            file.truncate(size - len(tail))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
