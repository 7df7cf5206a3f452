"""Parse the arguments of the command line, with errors that name the remedy."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from esdmon.errors import nearest

Number = TypeVar("Number", int, float)
_OPTION = re.compile(
    r"(?<!\S)(alerts|exclude|layers|max_eigenvalues|measures|reference|workers)=(?=(['\"\[])|[\s.,;:)]|$)"
)
"""An option of a Python call in a message: `layers='fc'` or `layers=`, and no path such as `layers=3/a.pt`."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses unknown options itself, so that the usage shown is that of the command that was called."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments, and refuse those that are left, with the option that may have been meant."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = re.findall(r"--[\w-]+", self.format_usage())
            option = next((each for each in unknown if each.startswith("-")), unknown[0])
            near = nearest(option.partition("=")[0], known, cutoff=0.75)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{'.' + near if near else ''}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices, with the one that may have been meant."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{'.' + near if near else ''}") from error

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message as argparse does, but raise an error of writing it to standard output."""
        if file is sys.stdout and file is not None:
            file.write(message)
        else:
            super()._print_message(message, file)


def number(kind: type[Number], low: Number, high: Number) -> Callable[[str], Number]:
    """Return a parser of numbers in [low, high], or in (low, high] for floats; argparse prints its error."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from error
        inside = low <= value <= high if kind is int else math.isfinite(value) and low < value <= high
        if not inside:
            bounds = f"from {low} to {high}" if kind is int else f"above {low} and at most {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: give a number {bounds}")
        return value

    return parse


def with_flags(text: str) -> str:
    """Return a message with the options of Python calls as the flags of a command: `--layers` for `layers=`."""
    return _OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}{' ' if found[2] else ''}", text)
