"""Define `CallbackOptions`: the arguments of a callback, checked when it is constructed, before a model exists."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any, Self, final

import numpy as np

from esdmon.options import WatchOptions
from esdmon.options.sinks import Sinks, listed
from esdmon.options.watch_options import is_default
from esdmon.schedule import Schedule


@final
class CallbackOptions:
    """The arguments of a callback. They do not change, and copies of a callback share them.

    Args:
        every: as in `esdmon.watch`.
        sinks: as in `esdmon.watch`, but "auto" means the Trainer's own loggers.
        options: the other options of `esdmon.watch`, by name.

    Raises:
        InputError: for an unknown option, or a value that cannot be used.
    """

    def __init__(self, *, every: int | Schedule, sinks: Sinks, options: Mapping[str, Any]) -> None:
        self.checked = WatchOptions.from_keywords({**options, "every": every, "sinks": sinks})
        # As checked: a generator yields its items only once.
        self.given = {name: _plain(getattr(self.checked, name)) for name in ("every", *options)}
        """The options that were passed, by name."""
        self.sinks = tuple(listed(sinks))

    @property
    def chosen(self) -> dict[str, Any]:
        """Return `every`, and the options that differ from their default; a command line may pass all options."""
        return {name: value for name, value in self.given.items() if name == "every" or not is_default(name, value)}

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the options themselves: the user's sinks and functions are not copied with a callback."""
        return self

    def json_arguments(self) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments that JSON can hold, and the sorted names of the others.

        Sinks that are addresses on the net are left out: they may be secrets, and JSON files are passed on.
        """
        has_address = any(isinstance(sink, str) and "://" in sink for sink in self.sinks)
        arguments = self.given | {"sinks": [sink for sink in self.sinks if "://" not in str(sink)]}
        held = {name: value for name, value in arguments.items() if _is_json(value)}
        return held, sorted(arguments.keys() - held.keys() | ({"sinks"} if has_address else set()))

    def updated(self, other: CallbackOptions, *, keep: Collection[str]) -> CallbackOptions:
        """Return these options, overridden by other ones.

        Args:
            other: the options that take precedence.
            keep: names of options that keep the value they have here.
        """
        merged = self.given | {name: value for name, value in other.given.items() if name not in keep}
        sinks = self.sinks if "sinks" in keep else other.sinks
        return CallbackOptions(every=merged.pop("every"), sinks=sinks, options=merged)


def _plain(value: Any) -> Any:
    """Return an option in a form for JSON: a number of numpy as Python's, a path as text."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
