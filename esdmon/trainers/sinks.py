"""Open the sinks of a callback: the ones in its arguments, and the host's own loggers for "auto"."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from esdmon.isolation import describe
from esdmon.plugins.manager import shown
from esdmon.sinks import Sink
from esdmon.sinks.lines import last_run
from esdmon.trainers.options import CallbackOptions

_log = logging.getLogger("esdmon")

Made = TypeVar("Made")
LoggerSinks = Iterable[tuple[str, Callable[[], str | Sink]]]
"""Sinks for loggers of a host, as pairs: the name in messages, and a function that returns the sink."""


@dataclass(frozen=True, kw_only=True)
class HostSinks:
    """The loggers and the folder of a host, for `sinks="auto"`. A function that raises is skipped and logged."""

    loggers: Callable[[], LoggerSinks]
    """Returns a sink for each logger of the host."""
    folder: Callable[[], str | os.PathLike[str]]
    """Returns the host's folder, for a JSONL file if there is no logger."""
    resumed: str | None
    """The id of the run that is resumed, which appends to its JSONL file in that folder; "" where the id is unknown;
    None for a new run."""


def open_sinks(options: CallbackOptions, host: HostSinks) -> list[tuple[str, str | Sink]]:
    """Return the sinks with their names; a sink of the host that cannot be opened is skipped, and logged."""
    sinks: list[tuple[str, str | Sink]] = []
    for given in options.sinks:
        if given == "auto":
            sinks += _automatic(options, host)
        else:
            sinks.append((shown(given), given))
    return sinks


def _automatic(options: CallbackOptions, host: HostSinks) -> list[tuple[str, str | Sink]]:
    strict = options.checked.strict
    sinks: list[tuple[str, str | Sink]] = []
    for name, make in _attempt("the Trainer's loggers", partial(_loggers, host), strict=strict) or ():
        sink = _attempt(name, partial(_opened, options, make), strict=strict)
        if sink is not None:
            sinks.append((name, sink))
    return sinks


def _loggers(host: HostSinks) -> LoggerSinks:
    """Return the host's loggers, or else a file in its folder."""
    loggers = list(host.loggers())
    if loggers:
        return loggers
    file = own_jsonl(host.folder(), resumed=host.resumed)
    return [(file, lambda: file)]


def own_jsonl(root: str | os.PathLike[str], *, resumed: str | None) -> str:
    """Return the sink `jsonl:ROOT/esdmon-1/esdmon.jsonl`, with the next free number.

    Args:
        root: the host's folder, which several runs may share.
        resumed: the id of a resumed run: if a file ends with its lines, they are appended to that file. "" for an
            unknown id uses the file with the highest number.
    """
    files = (Path(root) / f"esdmon-{n}" / "esdmon.jsonl" for n in itertools.count(1))
    old = list(itertools.takewhile(Path.exists, files))
    free = Path(root) / f"esdmon-{len(old) + 1}" / "esdmon.jsonl"
    if resumed is None:
        return f"jsonl:{free}"
    continued = (file for file in reversed(old) if resumed in ("", last_run(file)))
    return f"jsonl:{next(continued, free)}"


def _opened(options: CallbackOptions, make: Callable[[], str | Sink]) -> Sink:
    sink = make()
    return options.checked.known.open_sink(sink) if isinstance(sink, str) else sink


def _attempt(name: str, make: Callable[[], Made], *, strict: bool) -> Made | None:
    try:
        return make()
    except Exception as error:
        if strict:
            raise
        _log.warning(
            "esdmon: cannot open %s: %s. No readings are written to it; training continues.", name, describe(error)
        )
        return None
