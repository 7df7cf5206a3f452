"""Check options of `watch()` that need neither a model nor the plugins."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal, SupportsIndex

from esdmon.errors import InputError
from esdmon.runtime.executor import Mode


def _is_whole(value: object, least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, SupportsIndex) and operator.index(value) >= least


def _is_patterns(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Iterable) and not isinstance(value, dict) and all(isinstance(each, str) for each in value)
    )


SIMPLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tags": (lambda value: value is None or _is_whole(value, 0), "a number of series, 0 or more, or None for all"),
    "first_step": (lambda value: _is_whole(value, 0), "a number of steps, 0 or more"),
    "strict": (lambda value: isinstance(value, bool), "True or False"),
    "hook": (lambda value: isinstance(value, bool), "True or False"),
    "layers": (lambda value: value is None or _is_patterns(value), "a list of patterns of names, or None for all"),
    "exclude": (_is_patterns, "a list of patterns of names"),
}
"""Options that need neither model nor plugins to be checked: whether a value can be used, and what can."""


def check_simple(**options: object) -> None:
    """Check options by name.

    Raises:
        InputError: for a value that cannot be used.
    """
    for name, value in options.items():
        is_good, what = SIMPLE[name]
        if not is_good(value):
            raise InputError(f"{name}= is {what}; got {value!r}")


def check_mode(mode: str) -> Mode | Literal["auto"]:
    """Return a mode.

    Raises:
        InputError: for anything else than the three.
    """
    match mode:
        case "auto" | "sync" | "thread":
            return mode
    msg = f"mode= is one of auto, sync, thread; got {mode!r}"
    raise InputError(msg)
