"""What a user can do wrong, told in one sentence. Below every floor, so that each can raise it."""

import difflib
from collections.abc import Iterable
from typing import Any


class EsdmonError(Exception):
    """Base of all errors that esdmon raises on purpose."""


class InputError(EsdmonError, ValueError):
    """An argument that cannot be used; the message says what was got and what to do."""


class MissingExtraError(InputError, ImportError):
    """An optional package that is not installed."""

    def __init__(self, who: str, package: str, extra: str) -> None:
        super().__init__(f'{who} needs the package {package}: python -m pip install "esdmon[{extra}]"')


def as_list(name: str, value: object, what: str) -> list[Any]:
    """An argument that is a text or a list of things as a list; `InputError` for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise InputError(f"{name}= is a list of {what}, got {value!r}")
    return list(value)


def unwritable(what: str, error: OSError) -> InputError:
    """The error for a file or folder of the user's that cannot be written."""
    why = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror or error
    return InputError(f"{what} cannot be written: {why}. Choose another place.")


def nearest(got: str, known: Iterable[str]) -> str:
    """`" Did you mean 'a' or 'b'?"` for the names closest to what was got, or nothing."""
    close = difflib.get_close_matches(got, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
