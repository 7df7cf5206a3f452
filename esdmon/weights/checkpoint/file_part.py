"""Open a part of a file as a file, without a copy in memory, and without reading the bytes before the part."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open_part(path: Path, start: int, length: int) -> io.BufferedReader:
    """Open the part of a file that begins at a byte and has a number of them."""
    return io.BufferedReader(_Part(path, start, length))


@final
class _Part(io.RawIOBase):
    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._start, self._length, self._position = start, length, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start of the part, the current position or its end, and return the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read bytes of the part into a buffer, and return their number."""
        view = memoryview(buffer)
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view[: max(0, self._length - self._position)])
        self._position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
