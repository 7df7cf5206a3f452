"""Read the lines of a JSONL file as bytes, plain or gzipped: which run wrote them, and where to cut the file.

"Ours" are lines that this version of esdmon, or an older one, has written. Other lines are never changed.
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from esdmon.errors import InputError
from esdmon.records import SCHEMA
from esdmon.sinks import members

KINDS = ("layer", "summary", "alert", "note", "screened")
BLOCK_SIZE = 1 << 20
"""Number of bytes that are read at once from the end of a file."""
_MAX_FIRST_LINE = 1 << 24  # bytes; lines of ours have a few thousand
_MIN_TORN = len(b'{"schema":1')  # bytes of a torn line that are needed to recognise it as ours
_BLANKS = re.compile(rb"([:,]) ")
_HEAD = re.compile(rb'\{"schema": ?\d+, ?"kind": ?"\w+", ?"run": ?"([^"\\]+)", ?"step": ?(\d+)[,}]')


def new_run() -> str:
    """Return an id for a run: 8 hexadecimal digits, the first a letter.

    The letter matters because pandas reads 12345678 and 1e234567 in a CSV as numbers.
    """
    return secrets.choice("abcdef") + secrets.token_hex(4)[1:]


class Stamp(NamedTuple):
    """The run and the step of a line."""

    run: str | None
    """Id of the run that wrote it; None in files of older versions."""
    step: int


class Edit(NamedTuple):
    """A part of a file that is replaced."""

    start: int
    end: int
    text: bytes = b""


def is_packed(path: Path) -> bool:
    """Return whether a file is compressed, by its name."""
    return path.suffix == ".gz"


def packed(path: Path, text: bytes) -> bytes:
    """Return whole lines in the form in which they are appended to a file."""
    return members.pack(text) if is_packed(path) else text


def repair_end(path: Path) -> None:
    """Make a file end with a whole line: remove an incomplete line or member of ours, and add a missing newline.

    Raises:
        InputError: for a file that is not ours; it is left unchanged.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        found = (_end_of_whole_members if is_packed(path) else _end_of_whole_lines)(file, size)
    if found is None:
        what = "gzipped JSON lines" if is_packed(path) else "JSON lines"
        raise InputError(f"jsonl:{path} contains something other than {what} of esdmon. Choose another path.")
    end, lacks_newline = found
    if end < size:
        os.truncate(path, end)
    if lacks_newline:
        with path.open("ab") as file:
            file.write(packed(path, b"\n"))


def _end_of_whole_lines(file: BinaryIO, size: int) -> tuple[int, bool] | None:
    """Return the offset of an incomplete line, or the size, and whether a newline is missing; None if not ours."""
    file.seek(0)
    first = file.readline(_MAX_FIRST_LINE)
    if size == len(first) and (not first or _is_torn(first)):
        return 0, False
    if not _is_ours(first):
        return None
    _, block = next(_blocks(file, size))
    last = block.rpartition(b"\n")[2]
    if _is_torn(last) or not last.strip(b"\0"):  # a power failure may leave zeros
        return size - len(last), False
    return size, True


def _end_of_whole_members(file: BinaryIO, size: int) -> tuple[int, bool] | None:
    """Return the same values for a compressed file, where an incomplete member takes the place of a line."""
    last = next(members.members(file, size), None)
    if last is None:
        return 0, False
    file.seek(last.start + last.whole)
    rest = file.read()
    is_torn = rest.startswith(members.SIGNATURE) or members.SIGNATURE.startswith(rest) or not rest.strip(b"\0")
    is_empty = last.start + last.whole == 0
    if not is_torn or not (is_empty or _is_ours(members.first_bytes(file, _MAX_FIRST_LINE).partition(b"\n")[0])):
        return None
    return last.start + last.whole, last.text[-1:] not in (b"", b"\n")


def last_run(path: Path) -> str | None:
    """Return the run of our last line; None if there is no such line, or if it has no run."""
    with path.open("rb") as file:
        for _, _, text in _units(path, file):
            for line in reversed(text.split(b"\n")):
                stamp = stamp_of(line)
                if stamp is not None:
                    return stamp.run
    return None


def remove_after(path: Path, run: str | None, step: int) -> None:
    """Remove the lines that a run wrote after a step; lines of other runs stay.

    The file is read backwards from its end, until half a block contains no line of the run after the step, so that a
    file of gigabytes is not read completely.
    """
    with path.open("rb+") as file:
        edits = [*_edits(path, file, run, step)][::-1]
        if not edits:
            return
        size = file.seek(0, os.SEEK_END)
        if _removes_the_end(edits, size):  # the usual case
            file.truncate(edits[0].start)
        else:
            _replace(path, file, edits, size)


def _edits(path: Path, file: BinaryIO, run: str | None, step: int) -> Iterator[Edit]:
    """Yield the edits that remove the lines that a run wrote after a step, from the end of the file backwards."""
    run_bytes, passed = b"" if run is None else run.encode(), 0
    for start, end, text in _units(path, file):
        if run_bytes not in text:
            continue
        kept, is_known = [], False
        for line in text.splitlines(keepends=True):
            stamp = stamp_of(line)
            is_of_run = stamp is not None and stamp.run == run
            is_known |= is_of_run
            if stamp is None or not is_of_run or stamp.step <= step:
                kept.append(line)
        left = b"".join(kept)
        if left != text:
            passed = 0
            yield _edit(path, start, end, text, left)
        elif is_known:
            # Do not stop at the first line of an earlier step: an alert may precede a reading that was begun earlier.
            passed += len(text)
            if passed > BLOCK_SIZE // 2:
                return


def _edit(path: Path, start: int, end: int, text: bytes, left: bytes) -> Edit:
    """Return the edit that replaces a text by its remaining part."""
    if is_packed(path) or not text.startswith(left):
        return Edit(start, end, packed(path, left) if left else b"")
    return Edit(start + len(left), end)


def _units(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, end, text) of blocks of lines, or of members, from the end of the file backwards."""
    size = file.seek(0, os.SEEK_END)
    if is_packed(path):
        return ((piece.start, piece.start + piece.whole, piece.text) for piece in members.members(file, size))
    return ((start, start + len(block), block) for start, block in _blocks(file, size))


def _removes_the_end(edits: list[Edit], size: int) -> bool:
    """Return whether the edits remove everything from some offset to the end of the file."""
    starts = [*(edit.start for edit in edits[1:]), size]
    return all(edit.end == start and not edit.text for edit, start in zip(edits, starts, strict=True))


def _replace(path: Path, file: BinaryIO, edits: list[Edit], size: int) -> None:
    """Replace a file by an edited one; atomically, so that a kill leaves either the old or the new file."""
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", delete=False) as new:
        position = 0
        for edit in (*edits, Edit(size, size)):
            file.seek(position)
            for start in range(position, edit.start, BLOCK_SIZE):
                new.write(file.read(min(BLOCK_SIZE, edit.start - start)))
            new.write(edit.text)
            position = edit.end
    shutil.copymode(target, new.name)
    Path(new.name).replace(target)


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (start, block) from the end of the file backwards: whole lines, about `BLOCK_SIZE` bytes at a time."""
    end, length = size, BLOCK_SIZE
    while end > 0:
        start = file.seek(max(0, end - length))
        block = file.read(end - start)
        if start > 0:
            head, newline, block = block.partition(b"\n")
            start += len(head) + len(newline)
        if not block:  # the line is longer than the part that was read
            length *= 2
            continue
        yield start, block
        end, length = start, BLOCK_SIZE


def stamp_of(line: bytes) -> Stamp | None:
    """Return run and step of a line; None for a line that is incomplete or not ours."""
    head = _HEAD.match(line)
    if head:
        return Stamp(head[1].decode(), int(head[2]))
    if not _is_ours(line):
        return None
    record = json.loads(line)
    step = record.get("step")
    return Stamp(record.get("run"), step) if isinstance(step, int) else None


def _is_ours(line: bytes) -> bool:
    """Return True for a whole line that this version, or an older one, has written."""
    if b'"schema"' not in line:
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    schema = record.get("schema") if isinstance(record, dict) else None
    # Lines of a later version are not ours: nothing is appended to them or removed.
    return isinstance(schema, int) and schema <= SCHEMA and record.get("kind") in KINDS


def _is_torn(line: bytes) -> bool:
    """Return True for the beginning of a line of ours that was not completed."""
    if line.endswith(b"\n") or len(line) < _MIN_TORN or _is_ours(line):
        return False
    compact = _BLANKS.sub(rb"\1", line)  # older versions wrote blanks
    beginnings = (f'{{"schema":{SCHEMA},"kind":"{kind}"'.encode() for kind in KINDS)
    return any(compact.startswith(beginning) or beginning.startswith(compact) for beginning in beginnings)
