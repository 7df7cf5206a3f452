"""Event files: which folder a run's lie in, and how they are written. Needs TensorBoard, but not torch's writer."""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import socket
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from esdmon.errors import InputError, unwritable
from esdmon_tensorboard.values import InEvents

_log = logging.getLogger("esdmon")
_SECOND = re.compile(r"tfevents\.(\d{10})\.")


@final
class EventFile:
    """One event file, written by the thread that calls: `SummaryWriter` has a thread of its own for each.

    Args:
        folder: where it is made, if need be.
        run: the id of the run, which ends the file's name.
        purge: the step from which on TensorBoard is to drop what it has of this folder; None for nothing.
    """

    def __init__(self, folder: Path, run: str, *, purge: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{_next_name(folder)}.esdmon-{run}"
        self._file = self.path.open("xb", buffering=0)
        try:
            self._add(file_version="brain.Event:2")
            if purge is not None:
                self._add(step=purge, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            self.close()
            self.path.unlink()
            raise

    def add_summary(self, summary: Any, step: int) -> None:
        """Append an event."""
        self._add(summary=summary, step=step)

    def close(self) -> None:
        """Close the file; again is harmless."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        rest = record.getbuffer()
        while rest:  # a write to a disk that fills up may end early, and the next one raises
            rest = rest[self._file.write(rest) :]


@final
class RunFiles:
    """The event files of one run, in the folder that was asked for, or in `run-2`, `run-3` … of it.

    TensorBoard shows all event files of a folder as one run, so a second run that is written into the folder of a first
    would be mixed with it. A run knows its own files by its id, which their names hold.

    Raises:
        InputError: where the folder cannot be written.
    """

    def __init__(self, target: str) -> None:
        if not target:
            msg = "tensorboard needs a folder: 'tensorboard:runs/a'"
            raise InputError(msg)
        self._asked = Path(target).expanduser().absolute()  # the working directory may change
        self._chosen: Path | None = None
        self._run = secrets.token_hex(4)
        self._rewound: int | None = None
        self._file: EventFile | None = None
        self.lacks_layout = True
        self._made = [folder for folder in (self._asked, *self._asked.parents) if not folder.exists()]
        try:
            self._asked.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._asked):
                pass
        except OSError as error:
            self.close()
            raise unwritable(f"tensorboard:{target}", error) from error

    def start(self, run: str) -> None:
        """Take what is written from now on to be of the run with this id."""
        if run != self._run:
            self._forget()
            self._run, self._chosen, self._rewound = run, None, None

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop what this run wrote after a step, as soon as something is written."""
        self._forget()
        self._rewound = step

    def values(self, step: int, x: int) -> InEvents:
        """Open a file, if none is open, for values of a step that are drawn at `x`."""
        if self._file is not None and not self._file.path.exists():  # what is written to deleted files is nowhere
            _log.warning("esdmon: %s was deleted: what it held is lost. Writing goes on in a new file.", self._chosen)
            self._forget()
        if self._file is None:
            self._file = self._open(step, x)
            self.lacks_layout = True
        return InEvents(self._add)

    def flush(self) -> None:
        """Do nothing: what is written is seen at once."""

    def close(self) -> None:
        """Close the file; where nothing was written, remove the folders that were made for it."""
        self._forget()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add(self, summary: Any, step: int) -> None:
        if self._file is None:
            raise OSError("the event file is closed")
        try:
            self._file.add_summary(summary, step)
        except OSError:  # what follows a torn event is not read: the next one goes to a file of its own
            self._forget()
            raise

    def _open(self, step: int, x: int) -> EventFile:
        if self._chosen is None:
            self._chosen = self._choose()
        if not _event_files(self._chosen):
            # TensorBoard's reader in Python heeds a START only where there was one before: without this one, the points
            # after the step at which a run is resumed for the first time would be shown twice.
            purge = 0
        elif self._rewound is None:
            purge = None
        else:
            purge = self._rewound * x // max(step, 1) + 1  # a host may count otherwise
        file = EventFile(self._chosen, self._run, purge=purge)
        self._rewound = None
        return file

    def _choose(self) -> Path:
        folders = [self._asked, *(folder for folder in sorted(self._asked.glob("run-*")) if folder.is_dir())]
        for folder in folders:
            if any(name.endswith(f".esdmon-{self._run}") for name in _event_files(folder)):
                return folder
        if not _event_files(self._asked):
            return self._asked
        free = next(folder for n in count(2) if not (folder := self._asked / f"run-{n}").exists())
        _log.warning("esdmon: %s holds event files of another run: this run is written to %s.", self._asked, free)
        return free


def _event_files(folder: Path) -> list[str]:
    """The names of the event files in a folder, in order."""
    try:
        return sorted(name for name in os.listdir(folder) if "tfevents" in name)  # noqa: PTH208 -- names are all we need
    except OSError:
        return []


def _next_name(folder: Path) -> str:
    """A name behind those of all event files in a folder, since TensorBoard reads them in the order of their names."""
    seconds = [int(found[1]) for name in _event_files(folder) if (found := _SECOND.search(name))]
    second = max(int(time.time()), max(seconds, default=-1) + 1)
    return f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
