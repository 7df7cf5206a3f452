"""Follow the JSONL of a running run: read what is appended, and begin again where the file was replaced."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from esdmon.records import Report
from esdmon.records.shortening import Restorer
from esdmon.records.timeline import Timeline
from esdmon.replay.events import EventReader, RunState, parse
from esdmon.replay.files import nothing_read, unreadable
from esdmon.sinks.members import MAGIC, members

TAIL_BYTES = 2_000_000
"""Bytes from the end of a file that are read at first, decompressed: some 2000 lines. Our choice."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What was read from a file at once."""

    lines: list[bytes]
    """Whole lines."""
    is_first: bool
    """True if they follow no other piece: at first, and after the file was rewound or replaced."""
    from_start: bool
    """True if the lines since the last first piece begin at the start of the file."""
    is_cut: bool = False
    """True if the file ends within compressed data: it was cut off, or is being written."""


@final
class Follower:
    """Read a file that grows, from its last 2 MB on.

    A run that is resumed at an earlier step cuts its file and appends to it again, so the file may be longer than
    before at the next look. Therefore the last line that was read must still stand where it stood; otherwise, and if
    another file has taken the path, everything is read again. A last line without a newline is read once it is whole.

    Args:
        path: the file, plain or gzipped.
        most: bytes from the end that are read at first.
    """

    def __init__(self, path: Path, *, most: int = TAIL_BYTES) -> None:
        self.path = path
        self._most = most
        self._file_id: tuple[int, int] | None = None
        self._end = 0  # where the next piece begins
        self._last = b""  # the line before it
        self._from_start = True

    def read(self) -> Piece | None:
        """Return what is new; None if nothing is, or if the file does not exist at the moment.

        Raises:
            InputError: for a file that cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                file_id = status.st_dev, status.st_ino
                goes_on = file_id == self._file_id and self._stands(file, status.st_size)
                if goes_on and status.st_size == self._end:
                    return None
                self._file_id = file_id
                file.seek(0)
                if file.read(len(MAGIC)) == MAGIC:
                    return self._unpack(file, status.st_size)
                return self._read_plain(file, status.st_size, goes_on=goes_on)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _stands(self, file: BinaryIO, size: int) -> bool:
        """Return whether the last line that was read is still where it was."""
        start = self._end - len(self._last)
        file.seek(start)
        return size >= self._end and file.read(len(self._last)) == self._last

    def _read_plain(self, file: BinaryIO, size: int, *, goes_on: bool) -> Piece | None:
        start = self._end if goes_on else max(0, size - self._most)
        file.seek(start)
        data = file.read(size - start)
        if not goes_on:
            self._from_start = start == 0
            if start > 0:  # within a line
                head, newline, data = data.partition(b"\n")
                start += len(head) + len(newline)
        lines = data.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and not _is_whole(lines[-1]):
            data = data[: len(data) - len(lines.pop())]
        if not lines and goes_on:
            return None
        self._end = start + len(data)
        self._last = lines[-1] if lines else b""
        return Piece(lines, is_first=not goes_on, from_start=self._from_start)

    def _unpack(self, file: BinaryIO, size: int) -> Piece:
        """Read the last members of a gzip file; they are small, so that they are all read again each time."""
        texts: list[bytes] = []
        start, is_cut = size, False
        for piece in members(file, size):
            is_cut = is_cut or not piece.is_whole
            texts.append(piece.text + piece.unfinished)
            start = piece.start
            if sum(map(len, texts)) >= self._most:
                break
        file.seek(max(0, size - 64))
        self._end, self._last = size, file.read()[:64]
        lines = b"".join(reversed(texts)).splitlines(keepends=True)
        return Piece(lines, is_first=True, from_start=start == 0, is_cut=is_cut)


@final
class FollowedRun:
    """The course of the run that wrote to a file last, as far as it was read.

    Args:
        path: the JSONL.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.from_start = True
        """False if the run was read from a later step on."""
        self.is_cut = False
        """True if the file ends within compressed data: it was cut off, or is being written."""
        self._follower = Follower(path)
        self._run: RunState | None = None
        self._begin()

    def update(self) -> bool:
        """Read what is new; return whether anything was.

        Raises:
            InputError: for a file that cannot be read, or is not a JSONL of esdmon.
        """
        piece = self._follower.read()
        if piece is None:
            return False
        if piece.is_first:
            self._begin()
        self.from_start, self.is_cut = piece.from_start, piece.is_cut
        lines = (line.decode("utf-8-sig", errors="replace") for line in piece.lines)
        for run, event in self._reader.events(parse(lines, self.path, self._restorer)):
            if run is not self._run:
                self._run, self.timeline = run, self._timelines.setdefault(run, Timeline())
            if isinstance(event, Report):
                self.timeline.take(event)
            else:
                self.timeline.alert(event)
        return True

    @property
    def nothing_read(self) -> str:
        """Return what the file contains in the place of a report; for a run without one."""
        return nothing_read(self.path, self._reader.lines)

    def _begin(self) -> None:
        self._restorer, self._reader = Restorer(), EventReader(self.path)
        self._timelines: dict[RunState, Timeline] = {}
        self._run = None
        self.timeline = Timeline()


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
