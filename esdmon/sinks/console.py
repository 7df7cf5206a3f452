"""Print the table of each report."""

import os
import re
import sys
from dataclasses import replace
from typing import TextIO, final

from esdmon.calls import explain_wrong_calls
from esdmon.encoding import encodable
from esdmon.present.colours import coloured
from esdmon.records import Alert, LayerReport, Report, Skipped, severity_word
from esdmon.records.text import counted
from esdmon.spectrum import Phase

MAX_ROWS = 40
"""Largest number of layers of which the whole table is printed; with more, only layers that have changed phase. Our
choice."""
_PHASE_NAMES = re.compile("|".join(re.escape(phase.value) for phase in Phase))


@explain_wrong_calls
@final
class ConsoleSink:
    """Print each report as a table, and each alert as a line.

    Parameters that are not watched are named below the first table, and again only when they have changed. Phases have
    colours on a terminal, unless `NO_COLOR` is set. In the log of a CI job (`CI` is set, and the stream is not a
    terminal) a report is one line.

    Args:
        stream: where to print; by default standard output, looked up at each write.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._phases: dict[str, Phase] = {}
        self._skipped: tuple[Skipped, ...] = ()

    def write(self, report: Report) -> None:
        """Print the table; for a large model, only the rows of layers that have changed phase."""
        changed = [layer for layer in report if self._phases.get(layer.name) is not layer.shown_phase]
        self._phases = {layer.name: layer.shown_phase for layer in report}
        if os.environ.get("CI") and not self._is_terminal():
            self._print(_line(report))
        elif len(report) <= MAX_ROWS:
            self._print(f"{self._without_repeated(report).text}\n")
        else:
            self._print("\n".join([*_table(report, changed[:MAX_ROWS]), _line(report), ""]))

    def _without_repeated(self, report: Report) -> Report:
        """Return a report without the parameters that are not watched, if a table before has named the same ones."""
        last, self._skipped = self._skipped, report.coverage.skipped
        return report if last != self._skipped else replace(report, coverage=replace(report.coverage, skipped=()))

    def alert(self, alert: Alert) -> None:
        """Print severity, state and message."""
        self._print(f"[{severity_word(alert.severity)}] {alert.state}: {alert.message}")

    def flush(self) -> None:
        """Flush the stream."""
        flush = getattr(self._open_stream(), "flush", None)
        if flush is not None:
            flush()

    def close(self) -> None:
        """Flush; the stream stays open, since its owner closes it."""
        self.flush()

    def _open_stream(self) -> TextIO | None:
        """Return the stream; None if there is none, or it was closed."""
        stream = sys.stdout if self._stream is None else self._stream
        try:
            return None if getattr(stream, "closed", False) is True else stream
        except ValueError:  # the stream was detached from its buffer
            return None

    def _is_terminal(self) -> bool:
        isatty = getattr(self._open_stream(), "isatty", None)  # a replacement of stdout may have only write
        return callable(isatty) and bool(isatty())

    def _print(self, text: str) -> None:
        stream = self._open_stream()
        if stream is None:
            return
        text = encodable(text, getattr(stream, "encoding", None))
        if self._is_terminal() and not os.environ.get("NO_COLOR"):
            text = _PHASE_NAMES.sub(lambda found: coloured(Phase(found[0]), found[0]), text)
        print(text, file=stream)


def _line(report: Report) -> str:
    """Return one line with the number of layers in each phase."""
    return f"esdmon, step {report.step}: {counted(report)}; {len(report.new)} of {len(report)} read now"


def _table(report: Report, layers: list[LayerReport]) -> list[str]:
    """Return the header and the rows of some layers, without notes."""
    if not layers:
        return []
    return replace(report, layers=tuple(layers)).text.splitlines()[: 1 + len(layers)]
