"""The table on the terminal, at each reading."""

import os
import re
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TextIO, final

from esdmon.present.colours import coloured
from esdmon.records import Alert, LayerReport, Report
from esdmon.spectrum import Phase

MOST = 40
"""Layers up to which the whole table is shown; of more, those that are in another phase than before. Our choice."""
_PHASES = re.compile("|".join(re.escape(phase.value) for phase in Phase))


@final
class ConsoleSink:
    """Prints to `stream`; standard output, looked up at each write, where none is given.

    Phases have colours on a terminal, unless `NO_COLOR` is set. In the log of a CI job (`CI` is set, and it is no
    terminal) a reading is one line.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._phases: dict[str, Phase] = {}

    def write(self, report: Report) -> None:
        """Print the table, or what has changed in it."""
        changed = [layer for layer in report if self._phases.get(layer.name) is not layer.phase]
        self._phases = {layer.name: layer.phase for layer in report}
        if os.environ.get("CI") and not self._is_terminal():
            self._print(_line(report))
        elif len(report) <= MOST:
            self._print(f"{report}\n")
        else:
            self._print("\n".join([*_table(report, changed[:MOST]), _line(report), ""]))

    def alert(self, alert: Alert) -> None:
        """Print the message."""
        self._print(f"[{alert.severity}] {alert.state}: {alert.message}")

    def flush(self) -> None:
        """Flush the stream."""
        flush = getattr(self._open_stream(), "flush", None)
        if flush is not None:
            flush()

    def close(self) -> None:
        """Flush: the stream is not ours to close."""
        self.flush()

    def _open_stream(self) -> TextIO | None:
        """Return where to print; None without a standard output, and where it was closed: nobody would see it."""
        stream = sys.stdout if self._stream is None else self._stream
        try:
            return None if getattr(stream, "closed", False) is True else stream
        except ValueError:  # it was detached from its buffer
            return None

    def _is_terminal(self) -> bool:
        isatty = getattr(self._open_stream(), "isatty", None)  # what is put in the place of stdout may have only write
        return callable(isatty) and bool(isatty())

    def _print(self, text: str) -> None:
        stream = self._open_stream()
        if stream is None:
            return
        encoding = getattr(stream, "encoding", None)
        if isinstance(encoding, str):
            with suppress(LookupError):
                text = text.encode(encoding, errors="replace").decode(encoding)
        if self._is_terminal() and not os.environ.get("NO_COLOR"):
            text = _PHASES.sub(lambda found: coloured(Phase(found[0]), found[0]), text)
        print(text, file=stream)


def _line(report: Report) -> str:
    phases = Counter(layer.phase.value if layer.status == "ok" else layer.status for layer in report)
    counted = ", ".join(f"{count} {name}" for name, count in phases.most_common())
    return f"esdmon, step {report.step}: {counted}; {len(report.new)} of {len(report)} read now"


def _table(report: Report, layers: list[LayerReport]) -> list[str]:
    """The lines of the table that are those of some layers, and the header."""
    if not layers:
        return []
    return str(replace(report, layers=tuple(layers))).splitlines()[: 1 + len(layers)]
