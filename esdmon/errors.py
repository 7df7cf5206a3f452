"""Define the exceptions that users see, and check what users write: names, paths and existing files.

This module imports nothing of esdmon, so that every floor can use it.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

_LONGEST_LINE = 1000  # characters that are looked at; our choice
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")  # also of an address that was a `Path`, which has one slash less


class EsdmonError(Exception):
    """Base class of all errors that esdmon raises on purpose."""


class InputError(EsdmonError, ValueError):
    """Raised for an argument that cannot be used; the message gives the value and the remedy."""


class NoWeightsError(InputError):
    """Raised for a valid file without weights of a model, such as the state of an optimizer."""


class UnwatchableError(InputError):
    """Raised for a model that cannot be watched with any options; a Trainer then trains it without esdmon."""


class MissingExtraError(InputError, ImportError):
    """Raised if an optional package is not installed; the message gives the pip command."""

    def __init__(self, who: str, package: str, extra: str) -> None:
        super().__init__(f'{who} needs the package {package}: python -m pip install "esdmon[{extra}]"')


class UnreadableError(Exception):
    """Raised for a weight without a spectrum. It becomes the status and the reason of a reading, not a failure."""

    def __init__(self, status: Literal["skipped", "degenerate", "nonfinite", "failed"], reason: str) -> None:
        super().__init__(reason)
        self.status: Literal["skipped", "degenerate", "nonfinite", "failed"] = status
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a constructor for a copy in another process."""
        return type(self), (self.status, self.reason)


def as_list(name: str, value: object, what: str) -> list[Any]:
    """Return a list of the items, or of the text if it is one; raise `InputError` for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise InputError(f"{name}= must be a list of {what}; got {value!r}")
    return list(value)


def unwritable(what: str, error: OSError, *, remedy: str = "Choose another place.") -> InputError:
    """Return the error for a file or folder that cannot be written."""
    why = (
        "a file, or a link to nothing, is in the way"
        if isinstance(error, FileExistsError | NotADirectoryError)
        else error.strerror or error
    )
    return InputError(f"{what} cannot be written: {why}. {remedy}")


def is_address(place: str) -> bool:
    """Return whether a path is an address such as `s3://bucket/runs`, not a local path; `C:/runs` is one."""
    return _ADDRESS.match(place) is not None


def local_path(what: str, given: str | Path) -> Path:
    """Return the absolute path of a file or folder to write, which holds if the working directory changes.

    Args:
        what: name of the file or folder in messages.
        given: the path as the user wrote it; `~` is the home folder.

    Raises:
        InputError: for an address, which would become a local folder such as `s3:`, and for an impossible path.
    """
    if is_address(str(given)):
        raise InputError(
            f"{what} is an address, and only local files are written. Give a local path, and copy the files later."
        )
    if "\0" in str(given):
        raise InputError(f"{what!r} contains a null character, which no path may contain. Choose another path.")
    path = expand_home(given)
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise InputError(
            f"{what} cannot be written: the working directory was deleted. Change to another, or give an absolute path."
        ) from error


def expand_home(given: str | Path) -> Path:
    """Return a path in which `~` and `~user` are replaced by the home folder.

    Raises:
        InputError: if that folder is not known, as of a user without a name, in some containers.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(given)!r}: the home folder that ~ means is not known. Give the whole path.") from error


def check_content(what: str, path: Path, is_own: Callable[[str], bool]) -> None:
    """Check that a file to replace or to append to was written by esdmon, is empty, or does not exist.

    Args:
        what: name of the file in messages.
        path: path of the file.
        is_own: a function that returns whether the first line (its first 1000 characters) was written by esdmon.

    Raises:
        InputError: for a file with another first line, and for one that cannot be read.
    """
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(_LONGEST_LINE)
    except OSError as error:
        raise unwritable(what, error) from error
    if first and not is_own(first):
        line = first.rstrip("\r\n")[:60]
        raise InputError(
            f"{what} contains something else: its first line is {line!r}. It is left unchanged; choose another path."
        )


def nearest(got: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return `" Did you mean 'a' or 'b'?"` for the names closest to a wrong one, or an empty text."""
    close = difflib.get_close_matches(got, list(known), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def masked(text: str) -> str:
    """Return a text with line breaks and control characters replaced by `?`; names of layers may contain them."""
    return "".join(each if each.isprintable() else "?" for each in text)


def printable(text: str) -> str:
    """Return a text in one line, with line breaks and control characters as escape sequences."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
