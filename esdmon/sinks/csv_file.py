"""Append numbers and messages of alerts to a CSV file, one value per line."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TextIO, final

from esdmon.calls import explain_wrong_calls
from esdmon.errors import check_content, local_path, unwritable
from esdmon.notice import nearby
from esdmon.present.scalars import scalars, tag
from esdmon.records import Alert, Report
from esdmon.sinks.lines import new_run

COLUMNS = ("run", "step", "host_step", "tag", "value", "text")
"""Columns of the file: `step` in optimizer steps, `host_step` in the Trainer's steps, and either `value`, a number, or
`text`, the message of an alert; the other of the two is empty."""

Row = tuple[str, int, int | str, str, float | str, str]


@explain_wrong_calls
@final
class CsvSink:
    """Append the numbers of each report to the file `path`, by the tags of `esdmon.present.scalars`; create its folder.

    A line holds one value, so that later layers and alerts need no new column. To get a table with a column for each
    tag: `pandas.read_csv(path).pivot_table(index="step", columns="tag", values="value")`.

    Args:
        path: the file. Several runs may be appended to one file.

    Raises:
        InputError: for a path that cannot be written, and for a file with other columns, which is left unchanged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(f"csv:{path}", path)
        self._run = new_run()
        self._host_step: int | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_content(f"csv:{self.path}", self.path, lambda first: first.rstrip("\r\n") == ",".join(COLUMNS))
            with _open(self.path, "a"):
                pass
        except OSError as error:
            raise unwritable(f"csv:{path}", error) from error

    def start(self, run: str) -> None:
        """Write this id in all lines from now on."""
        self._run = run

    def write(self, report: Report) -> None:
        """Append a line for each number of a report."""
        self._host_step = report.host_step
        self._append(self._row(report.step, name, value) for name, value in scalars(report).items())

    def alert(self, alert: Alert) -> None:
        """Append a line with the message of an alert: `esdmon_alert/<rule>`."""
        self._append([self._row(alert.step, tag("alert", alert.rule), "", f"{alert.state}: {alert.message}")])

    def rewind(self, step: int) -> None:
        """Remove the lines that this run wrote after a step."""
        if not self.path.is_file():
            return
        beside = self.path.with_name(f"{self.path.name}.part")
        with _open(self.path, "r") as old, _open(beside, "w") as new:
            csv.writer(new, lineterminator="\n").writerows(self._kept(old, step))
        beside.replace(self.path)

    def where(self) -> str:
        """Return the path of the file."""
        return nearby(self.path)

    def flush(self) -> None:
        """Do nothing: the file is closed after each report."""

    def close(self) -> None:
        """Do nothing: the file is closed after each report."""

    def _row(self, step: int, name: str, value: float | str, text: str = "") -> Row:
        return self._run, step, "" if self._host_step is None else self._host_step, name, value, text

    def _append(self, rows: Iterable[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _open(self.path, "a") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(COLUMNS)
            elif not self._ends_with_a_line():  # a line that a killed process did not finish
                file.write("\n")
            writer.writerows(rows)

    def _kept(self, file: TextIO, step: int) -> Iterator[list[str]]:
        for row in csv.reader(file):
            is_later = len(row) == len(COLUMNS) and row[0] == self._run and row[1].isdigit() and int(row[1]) > step
            if row and not is_later:
                yield row

    def _ends_with_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


def _open(path: Path, mode: Literal["r", "w", "a"]) -> TextIO:
    """Open a file in UTF-8, whatever the system's encoding is; bytes that are not UTF-8 are written as they were."""
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
