"""Write gzip members: any gzip reader can read a file while it grows by whole members.

Each member of ours begins with the same `SIGNATURE`, so that members can be found from the end of a file backwards,
without decompressing the part before them. Source: RFC 1952; it allows an extra field in a member, and appended
members.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_FIELD = b"ES" + struct.pack("<H", 6) + b"esdmon"
SIGNATURE = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(_FIELD)) + _FIELD
"""Header of a member: deflated, with an extra field, without time and system."""
MAGIC = SIGNATURE[:2]
"""The first bytes of every gzip file."""
_GZIP = 16 + zlib.MAX_WBITS
_FIRST = 1 << 20  # largest number of compressed bytes of the first member that are read
_BLOCK_SIZE = 1 << 16  # bytes that are first read from the end; doubled as long as no member begins there


class Members(NamedTuple):
    """A piece of a file: one member of ours, or several of another program."""

    start: int
    text: bytes
    """The decompressed content of the complete members."""
    whole: int
    """Number of bytes from `start` on that are whole members."""
    unfinished: bytes = b""
    """What can be decompressed of a last member that is not whole."""
    is_whole: bool = True
    """False where the piece ends within a member, or with other data."""


def pack(text: bytes) -> bytes:
    """Return a member."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    checks = struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF)
    return SIGNATURE + deflate.compress(text) + deflate.flush() + checks


def members(file: BinaryIO, size: int) -> Iterator[Members]:
    """Yield the pieces of a file from its end to its beginning, each decompressed."""
    buffer, position, end, length = b"", size, size, _BLOCK_SIZE
    while end > 0:
        at = buffer.rfind(SIGNATURE)
        if at < 0 and position > 0:
            position = file.seek(max(0, position - length))
            buffer = file.read(end - len(buffer) - position) + buffer
            length *= 2
            continue
        at = max(at, 0)
        yield _unpack(position + at, buffer[at:])
        end, buffer, length = position + at, buffer[:at], _BLOCK_SIZE


def first_bytes(file: BinaryIO, count: int) -> bytes:
    """Return up to `count` decompressed bytes of the first member of a file; empty if it is not gzip."""
    file.seek(0)
    inflate = zlib.decompressobj(_GZIP)
    try:
        return inflate.decompress(file.read(_FIRST), count)
    except zlib.error:
        return b""


def _unpack(start: int, data: bytes) -> Members:
    """Return the content of the whole members at the beginning of the data, and of one that is not finished."""
    texts, rest, unfinished = [], data, b""
    while rest:
        inflate = zlib.decompressobj(_GZIP)
        try:
            text = inflate.decompress(rest)
        except zlib.error:
            break
        if not inflate.eof:
            unfinished = text
            break
        texts.append(text)
        rest = inflate.unused_data
    return Members(start, b"".join(texts), len(data) - len(rest), unfinished, not rest)
