"""`FilePart`: a part of a file as a file."""

import io
from typing import TYPE_CHECKING, BinaryIO, final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@final
class FilePart(io.RawIOBase):
    """Read a part of a file as a file, which may begin anywhere: `zipfile` reads all that lies before.

    Args:
        file: open for reading; closed with this one.
        start: first byte of the part.
        size: number of bytes.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte of the part, and return its number."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into a buffer, and return the number of bytes read: 0 at the end of the part."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
