"""Find and write event files of a run. Imports TensorBoard, but not torch's writer."""

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

from esdmon.errors import InputError, local_path, unwritable
from esdmon.notice import nearby
from esdmon_tensorboard.outputs import EventOutput

_log = logging.getLogger("esdmon")
_SECOND_IN_NAME = re.compile(r"tfevents\.(\d{10})\.")


@final
class EventFile:
    """One event file, written by the calling thread; `SummaryWriter` would start a thread for each.

    Args:
        folder: folder of the file; created if it does not exist.
        run: id of the run; the file's name ends with it.
        purge: TensorBoard drops the data of this folder from this step on; None to drop nothing.
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
        """Append an event with many values."""
        self._add(summary=summary, step=step)

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        rest = record.getbuffer()
        while rest:  # on a full disk a write may be partial, and the next one raises
            rest = rest[self._file.write(rest) :]


@final
class RunFiles:
    """The event files of one run, in the given folder, or in its subfolder `run-2`, `run-3` ….

    TensorBoard shows all event files of a folder as one run, so a second run in the folder of a first would be mixed
    with it. A run recognises its files by its id, which is part of their names.

    Raises:
        InputError: without a folder, and for one that cannot be written.
    """

    def __init__(self, target: str) -> None:
        if not target:
            raise InputError("tensorboard needs a folder, such as 'tensorboard:runs/a'")
        self._folder = local_path(f"tensorboard:{target}", target)
        self._run_folder: Path | None = None
        self._run = secrets.token_hex(4)
        self._rewound_to: int | None = None
        self._file: EventFile | None = None
        self.needs_layout = True
        self._created = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            self.close()
            raise unwritable(f"tensorboard:{target}", error) from error

    def start(self, run: str) -> None:
        """Write to files of the run with this id from now on."""
        if run != self._run:
            self._close_file()
            self._run, self._run_folder, self._rewound_to = run, None, None

    def rewind(self, step: int) -> None:
        """Make TensorBoard drop what this run wrote after a step, at the next write."""
        self._close_file()
        self._rewound_to = step

    def output(self, step: int, x: int) -> EventOutput:
        """Return a way to write values of a step that are drawn at `x`; open a file if none is open."""
        if self._file is not None and not self._file.path.exists():  # writing to a deleted file would lose the values
            _log.warning(
                "esdmon: %s was deleted, and its content is lost. Writing continues in a new file.", self._run_folder
            )
            self._close_file()
        if self._file is None:
            self._file = self._open(step, x)
            self.needs_layout = True
        return EventOutput(self._add)

    def where(self) -> str:
        """Return the folder of the run."""
        return nearby(self._run_folder or self._folder)

    def flush(self) -> None:
        """Do nothing: the file is not buffered."""

    def close(self) -> None:
        """Close the file; remove the folders that were created if nothing was written to them."""
        self._close_file()
        with suppress(OSError):
            for folder in self._created:
                folder.rmdir()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add(self, summary: Any, step: int) -> None:
        if self._file is None:
            raise OSError("the event file is closed")
        try:
            self._file.add_summary(summary, step)
        except OSError:  # TensorBoard reads nothing after an incomplete event, so the next one goes to a new file
            self._close_file()
            raise

    def _open(self, step: int, x: int) -> EventFile:
        if self._run_folder is None:
            self._run_folder = self._choose_folder()
        file = EventFile(self._run_folder, self._run, purge=self._purge_step(self._run_folder, step, x))
        self._rewound_to = None
        return file

    def _purge_step(self, folder: Path, step: int, x: int) -> int | None:
        """Return the x-coordinate from which on TensorBoard drops its data; None to drop nothing."""
        if not _event_files(folder):
            # TensorBoard's Python reader respects a START only if there was one before. Without this one, the points
            # after the step at which a run is first resumed would be shown twice.
            return 0
        if self._rewound_to is None:
            return None
        return self._rewound_to * x // max(step, 1) + 1  # x may be a host's step, which counts differently

    def _choose_folder(self) -> Path:
        """Return the folder with files of this run; else the given folder, or its subfolder `run-N` if it is in use."""
        folders = [self._folder, *(folder for folder in sorted(self._folder.glob("run-*")) if folder.is_dir())]
        for folder in folders:
            if any(name.endswith(f".esdmon-{self._run}") for name in _event_files(folder)):
                return folder
        if not _event_files(self._folder):
            return self._folder
        numbered = (self._folder / f"run-{number}" for number in count(2))
        free = next(folder for folder in numbered if not folder.exists())
        _log.warning("esdmon: %s has event files of another run. This run is written to %s.", self._folder, free)
        return free


def _event_files(folder: Path) -> list[str]:
    """Return the names of the event files in a folder, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if "tfevents" in name)  # noqa: PTH208 -- only names are needed
    except OSError:
        return []


def _next_name(folder: Path) -> str:
    """Return a name that sorts after all event files of a folder, since TensorBoard reads them in that order."""
    matches = [_SECOND_IN_NAME.search(name) for name in _event_files(folder)]
    seconds = [int(match[1]) for match in matches if match]
    second = max(int(time.time()), max(seconds, default=-1) + 1)
    return f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
