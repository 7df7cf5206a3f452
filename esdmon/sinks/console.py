"""The table on the terminal, at each reading."""

import os
import re
import sys
from collections import Counter
from dataclasses import replace
from typing import TextIO, final

from esdmon.records import Alert, LayerReport, Report
from esdmon.spectrum import Phase

MOST = 40
"""Layers up to which the whole table is shown; of more, those that are in another phase than before. Our choice."""
_COLOURS = {
    Phase.RANDOM_LIKE: "2",  # dim
    Phase.BLEEDING_OUT: "36",  # cyan
    Phase.BULK_SPIKES: "34",  # blue
    Phase.BULK_DECAY: "35",  # magenta
    Phase.HEAVY_TAILED: "32",  # green
    Phase.RANK_COLLAPSE: "31",  # red
}
_PHASES = re.compile("|".join(re.escape(phase.value) for phase in _COLOURS))


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
        (self._stream or sys.stdout).flush()

    def close(self) -> None:
        """Flush: the stream is not ours to close."""
        self.flush()

    def _is_terminal(self) -> bool:
        return (self._stream or sys.stdout).isatty()

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stdout
        encoding = stream.encoding or "utf-8"
        text = text.encode(encoding, errors="replace").decode(encoding)
        if self._is_terminal() and not os.environ.get("NO_COLOR"):
            text = _PHASES.sub(lambda found: f"\x1b[{_COLOURS[Phase(found[0])]}m{found[0]}\x1b[0m", text)
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
