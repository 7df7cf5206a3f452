"""The lines of a JSONL file as bytes: which run wrote them, and where the file may be cut.

"Ours" are lines that this version of esdmon, or an older one, has written. Other lines are never changed.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from esdmon.errors import InputError
from esdmon.records import SCHEMA

KINDS = ("layer", "summary", "alert", "note")
BLOCK_SIZE = 1 << 20
"""Bytes that are read at once from the end of a file."""
_MAX_FIRST_LINE = 1 << 24  # bytes; ours have a few thousand
_MIN_TORN = len(b'{"schema": ')  # bytes of a torn line that are needed to recognise it as ours
_HEAD = re.compile(rb'\{"schema": \d+, "kind": "\w+", "run": "([^"\\]+)", "step": (\d+)[,}]')


class Origin(NamedTuple):
    """Where a line comes from."""

    run: str | None
    """Id of the run that wrote it; None in files of older versions."""
    step: int


def repair_end(path: Path) -> None:
    """Make a file end with a whole line: remove a torn line of ours, and add a missing newline.

    Raises:
        InputError: for a file that is not ours; it is left unchanged.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_whole_lines(file, size)
        if end is None:
            msg = f"jsonl:{path} contains something else than JSON lines of esdmon. Choose another path."
            raise InputError(msg)
        file.seek(max(0, end - 1))
        lacks_newline = end > 0 and file.read(1) != b"\n"
    if end < size:
        os.truncate(path, end)
    if lacks_newline:
        with path.open("ab") as file:
            file.write(b"\n")


def _end_of_whole_lines(file: BinaryIO, size: int) -> int | None:
    """Return where a torn line begins, or the size if there is none; None for a file that is not ours."""
    file.seek(0)
    first = file.readline(_MAX_FIRST_LINE)
    if size == len(first) and (not first or _is_torn(first)):
        return 0
    if not _is_ours(first):
        return None
    _, block = next(_blocks(file, size))
    last = block.rpartition(b"\n")[2]
    is_torn = _is_torn(last) or not last.strip(b"\0")  # a machine that lost its power may leave zeros
    return size - len(last) if is_torn else size


def last_run(path: Path) -> str | None:
    """Return the run of our last line; None without such a line, and if it has no run."""
    with path.open("rb") as file:
        for _, block in _blocks(file, file.seek(0, os.SEEK_END)):
            for line in reversed(block.split(b"\n")):
                origin = parse_origin(line)
                if origin is not None:
                    return origin.run
    return None


def remove_after(path: Path, run: str | None, step: int) -> None:
    """Remove the lines that a run wrote after a step, and no line of another run.

    The file is read backwards from its end, up to a block in which the run has not passed the step: a file of
    gigabytes is not read whole.
    """
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        spans = sorted(_spans_after(file, size, run, step))
        if not spans:
            return
        kept = _gaps(spans, size)
        if not kept:  # the usual case: nothing follows
            file.truncate(spans[0][0])
            return
        _replace(path, file, [(0, spans[0][0]), *kept])


def _spans_after(file: BinaryIO, size: int, run: str | None, step: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each line that a run wrote after a step, block by block from the end of the file."""
    run_bytes = b"" if run is None else run.encode()
    for start, block in _blocks(file, size):
        if run_bytes not in block:
            continue
        position, steps = start, []
        for line in block.splitlines(keepends=True):
            origin = parse_origin(line)
            if origin is not None and origin.run == run:
                steps.append(origin.step)
                if origin.step > step:
                    yield position, position + len(line)
            position += len(line)
        # Not at the first line of an earlier step: an alert may be written before a reading that was begun earlier.
        if steps and max(steps) <= step:
            return


def _gaps(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return the spans between given ones, and the one behind the last."""
    starts = [*(start for start, _ in spans[1:]), size]
    return [(end, start) for (_, end), start in zip(spans, starts, strict=True) if end < start]


def _replace(path: Path, file: BinaryIO, kept: list[tuple[int, int]]) -> None:
    """Replace a file by some of its spans; atomically, so that a kill leaves either the old or the new file."""
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", delete=False) as new:
        for start, end in kept:
            file.seek(start)
            for position in range(start, end, BLOCK_SIZE):
                new.write(file.read(min(BLOCK_SIZE, end - position)))
    shutil.copymode(target, new.name)
    Path(new.name).replace(target)


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (start, block) from the end of the file on: whole lines, about `BLOCK_SIZE` bytes at a time."""
    end, length = size, BLOCK_SIZE
    while end > 0:
        start = file.seek(max(0, end - length))
        block = file.read(end - start)
        if start > 0:
            head, newline, block = block.partition(b"\n")
            start += len(head) + len(newline)
        if not block:  # the line is longer than what was read
            length *= 2
            continue
        yield start, block
        end, length = start, BLOCK_SIZE


def parse_origin(line: bytes) -> Origin | None:
    """Return where a line comes from; None for a line that is torn or not ours."""
    head = _HEAD.match(line)
    if head:
        return Origin(head[1].decode(), int(head[2]))
    if not _is_ours(line):
        return None
    record = json.loads(line)
    step = record.get("step")
    return Origin(record.get("run"), step) if isinstance(step, int) else None


def _is_ours(line: bytes) -> bool:
    """Return True for a whole line that this version, or an older one, has written."""
    if b'"schema"' not in line:
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    schema = record.get("schema") if isinstance(record, dict) else None
    # A later version's lines are not ours to append to, or to cut.
    return isinstance(schema, int) and schema <= SCHEMA and record.get("kind") in KINDS


def _is_torn(line: bytes) -> bool:
    """Return True for the beginning of a line of ours that was never finished."""
    if line.endswith(b"\n") or len(line) < _MIN_TORN or _is_ours(line):
        return False
    beginnings = (f'{{"schema": {SCHEMA}, "kind": "{kind}"'.encode() for kind in KINDS)
    return any(line.startswith(beginning) or beginning.startswith(line) for beginning in beginnings)
