"""One JSON object a line, appended: `pandas.read_json(path, lines=True)` reads it, also while it grows."""

import json
from pathlib import Path
from typing import final

from esdmon.errors import InputError
from esdmon.records import SCHEMA, Alert, Record, Report


@final
class JsonlSink:
    """Appends to `path`; makes its folder. A line cut short by a kill is removed when the file is opened again.

    Every line holds `"schema"`, `"kind"` (layer, summary or alert) and `"step"`; what is undefined is null, never NaN.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            msg = f"jsonl:{path} cannot be written: {error.strerror or error}. Choose another path."
            raise InputError(msg) from error

    def write(self, report: Report) -> None:
        """A line for each matrix, and one for the summary."""
        records = [{"kind": "layer"} | record for record in report.to_records()]
        self._append([*records, {"kind": "summary"} | report.to_summary_record()])

    def alert(self, alert: Alert) -> None:
        """A line."""
        self._append([{"kind": "alert"} | alert.to_record()])

    def flush(self) -> None:
        """Nothing to do: each write is flushed."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, records: list[Record]) -> None:
        lines = [json.dumps({"schema": SCHEMA} | record, allow_nan=False, ensure_ascii=False) for record in records]
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()


def _drop_partial_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
