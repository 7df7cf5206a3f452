"""The lines of a JSONL file as bytes: whose they are, and where they may be cut. What is not ours is never changed."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from esdmon.errors import InputError
from esdmon.records import SCHEMA

KINDS = ("layer", "summary", "alert", "note")
_BLOCK = 1 << 20
_LONGEST_FIRST = 1 << 24  # bytes of a first line; ours have a few thousand
_SHORTEST = len(b'{"schema": ')  # what at least is left of a line that we began
_HEAD = re.compile(rb'\{"schema": \d+, "kind": "\w+", "run": "([^"\\]+)", "step": (\d+)[,}]')
Line = tuple[str | None, int]
"""The run that wrote it, and the step."""


def mend(path: Path) -> None:
    """Have a file end with a line that is whole: cut off the beginning of one that a kill left behind lines of ours.

    Raises:
        InputError: for a file that is not ours; it is left as it was.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_whole_lines(file, size)
        if end is None:
            msg = f"jsonl:{path} holds something else than JSON lines of esdmon. Choose another path."
            raise InputError(msg)
        file.seek(max(0, end - 1))
        lacks_newline = end > 0 and file.read(1) != b"\n"
    if end < size:
        os.truncate(path, end)
    if lacks_newline:
        with path.open("ab") as file:
            file.write(b"\n")


def _end_of_whole_lines(file: BinaryIO, size: int) -> int | None:
    """Return where a line begins that was not finished, or the end of the file; None for a file that is not ours."""
    file.seek(0)
    first = file.readline(_LONGEST_FIRST)
    if size == len(first) and (not first or _is_begun(first)):
        return 0
    if not _is_ours(first):
        return None
    _, block = next(_blocks(file, size))
    last = block.rpartition(b"\n")[2]
    is_torn = _is_begun(last) or not last.strip(b"\0")  # a machine that lost its power may leave zeros
    return size - len(last) if is_torn else size


def last_run(path: Path) -> str | None:
    """Return the run that wrote the last line of ours; None where there is none, or where lines name no run."""
    with path.open("rb") as file:
        for _, block in _blocks(file, file.seek(0, os.SEEK_END)):
            for line in reversed(block.split(b"\n")):
                read = _read(line)
                if read is not None:
                    return read[0]
    return None


def cut(path: Path, run: str | None, step: int) -> None:
    """Remove the lines that a run wrote after a step, and no line of another.

    The file is read from its end, up to where the run is seen to have been at that step: one that holds gigabytes is
    not read whole.
    """
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        spans = sorted(_written_after(file, size, run, step))
        if not spans:
            return
        kept = _gaps(spans, size)
        if not kept:  # the usual case: nothing follows
            file.truncate(spans[0][0])
            return
        _replace(path, file, [(0, spans[0][0]), *kept])


def _written_after(file: BinaryIO, size: int, run: str | None, step: int) -> Iterator[tuple[int, int]]:
    """Where the lines begin and end that a run wrote after a step, from the end of the file on."""
    name = b"" if run is None else run.encode()
    for start, block in _blocks(file, size):
        if name not in block:
            continue
        place, steps = start, []
        for line in block.splitlines(keepends=True):
            read = _read(line)
            if read is not None and read[0] == run:
                steps.append(read[1])
                if read[1] > step:
                    yield place, place + len(line)
            place += len(line)
        # Not at the first line of an earlier step: an alert may be written before a reading that was begun earlier.
        if steps and max(steps) <= step:
            return


def _gaps(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """What lies between spans, and behind the last."""
    starts = [*(start for start, _ in spans[1:]), size]
    return [(end, start) for (_, end), start in zip(spans, starts, strict=True) if end < start]


def _replace(path: Path, file: BinaryIO, kept: list[tuple[int, int]]) -> None:
    """Put a file with some parts of it in its place, so that a kill leaves the one or the other."""
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", delete=False) as new:
        for start, end in kept:
            file.seek(start)
            for place in range(start, end, _BLOCK):
                new.write(file.read(min(_BLOCK, end - place)))
    shutil.copymode(target, new.name)
    Path(new.name).replace(target)


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, a megabyte or more at a time from the end of the file on, each time with the place of the first."""
    end, length = size, _BLOCK
    while end > 0:
        start = file.seek(max(0, end - length))
        block = file.read(end - start)
        if start > 0:
            head, newline, block = block.partition(b"\n")
            start += len(head) + len(newline)
        if not block:  # a line that is longer than that
            length *= 2
            continue
        yield start, block
        end, length = start, _BLOCK


def _read(line: bytes) -> Line | None:
    """Who wrote a line, and at which step; None for what is torn or not ours."""
    found = _HEAD.match(line)
    if found:
        return found[1].decode(), int(found[2])
    if not _is_ours(line):
        return None
    record = json.loads(line)
    step = record.get("step")
    return (record.get("run"), step) if isinstance(step, int) else None


def _is_ours(line: bytes) -> bool:
    if b'"schema"' not in line:
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    schema = record.get("schema") if isinstance(record, dict) else None
    # A later version's lines are not ours to append to, or to cut.
    return isinstance(schema, int) and schema <= SCHEMA and record.get("kind") in KINDS


def _is_begun(line: bytes) -> bool:
    """Whether it is the beginning of a line of ours that was never finished."""
    if line.endswith(b"\n") or len(line) < _SHORTEST or _is_ours(line):
        return False
    begins = (f'{{"schema": {SCHEMA}, "kind": "{kind}"'.encode() for kind in KINDS)
    return any(line.startswith(begin) or begin.startswith(line) for begin in begins)
