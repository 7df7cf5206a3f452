"""Define `Origin`: the files of a checkpoint that were read, and other weights in the same folder."""

from dataclasses import dataclass
from pathlib import PurePath

from esdmon.errors import printable
from esdmon.records.text import named

_NAMED = 6  # files in a line; our choice


@dataclass(frozen=True, slots=True)
class Origin:
    """The files of a checkpoint. A folder may hold several checkpoints, of which one is read."""

    path: str
    """Path that the user passed."""
    files: tuple[str, ...]
    """Files that were read, relative to `path` if it is a folder, else to the folder that contains it."""
    unread: tuple[str, ...] = ()
    """Files with other weights in the folder `path`, which were not read; empty if `path` is a file."""
    is_reference: bool = False
    """True for the checkpoint with W₀."""

    @property
    def lines(self) -> list[str]:
        """Return a line on the files that were read, unless `path` is the only one, and a line on the unread files."""
        lines = []
        if self.files != (PurePath(self.path).name,):
            what = "W₀ read" if self.is_reference else "read"
            lines.append(f"{what} from {self.path}: {named(self.files, most=_NAMED)}")
        if self.unread:
            others = named(self.unread, most=_NAMED)
            lines.append(f"not read, in {self.path}: {others}. To read one of them, pass its path.")
        return [printable(line) for line in lines]
