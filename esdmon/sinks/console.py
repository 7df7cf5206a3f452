"""The table on the terminal, at each reading."""

import sys
from typing import TextIO, final

from esdmon.records import Alert, Report


@final
class ConsoleSink:
    """Prints to `stream`; standard output, looked up at each write, where none is given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write(self, report: Report) -> None:
        """Print the table."""
        self._print(f"{report}\n")

    def alert(self, alert: Alert) -> None:
        """Print the message."""
        self._print(f"[{alert.severity}] {alert.state}: {alert.message}")

    def flush(self) -> None:
        """Flush the stream."""
        (self._stream or sys.stdout).flush()

    def close(self) -> None:
        """Flush: the stream is not ours to close."""
        self.flush()

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stdout
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream)
