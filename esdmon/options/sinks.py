"""Resolve `sinks=`: names and objects to open sinks."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from esdmon.errors import InputError, local_path, unwritable
from esdmon.isolation import describe
from esdmon.notice import notice
from esdmon.plugins import Plugins
from esdmon.plugins.manager import shown
from esdmon.sinks import Sink

Sinks = str | Sink | Sequence[str | Sink] | None
_Given = tuple[str | Sink, bool]
"""A sink, and whether it is one of "auto"."""

_log = logging.getLogger("esdmon")


def listed(sinks: Sinks) -> Sequence[str | Sink]:
    """Return `sinks=` as a list."""
    if sinks is None:
        return []
    return [sinks] if isinstance(sinks, str) or not isinstance(sinks, Sequence) else sinks


def check_sinks(sinks: Sinks, known: Plugins) -> None:
    """Check each sink without opening it.

    Raises:
        InputError: for an unknown scheme, or an object without the methods of a sink.
    """
    for spec in listed(sinks):
        if spec != "auto":
            known.check_sink(spec)


def open_sinks(
    sinks: Sinks, known: Plugins, *, webhook: str = "", free_addresses: Callable[[], object]
) -> list[tuple[str, Sink]]:
    """Return open sinks, each with its name in messages.

    Args:
        sinks: as given to `watch()`.
        known: the plugins, which open `scheme:target`.
        webhook: an address that alerts are posted to as well; empty for none.
        free_addresses: called if an address is in use, before the sinks are opened again.

    Raises:
        InputError: for a sink that cannot be opened; those that were opened before it are closed.
    """
    several: list[_Given] = []
    for given in listed(sinks):
        several += [(spec, True) for spec in _automatic(known)] if given == "auto" else [(given, False)]
    several = _once(several)
    if webhook:
        several.append((f"webhook:{webhook}", False))
    try:
        return _opened(several, known)
    except InputError as error:
        if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE):
            raise
    free_addresses()
    return _opened(several, known)


def _opened(several: Sequence[_Given], known: Plugins) -> list[tuple[str, Sink]]:
    """Open all sinks; close those that are open if one of them cannot be opened."""
    opened: list[tuple[str, Sink]] = []
    try:
        for spec, is_automatic in several:
            try:
                sink = known.open_sink(spec)
            except Exception as error:
                if not is_automatic:
                    raise
                _log.warning(
                    "esdmon: the sink %s cannot be opened: %s. Nothing is written to it.", spec, describe(error)
                )
                continue
            opened.append((_name(spec, known), sink))
    except BaseException:
        for _, sink in opened:
            sink.close()
        raise
    return opened


def _once(several: Sequence[_Given]) -> list[_Given]:
    """Return sinks without those that would write to the same place as one before them, with a warning for each."""
    kept: dict[str | int, _Given] = {}
    for spec, is_automatic in several:
        scheme, _, target = spec.partition(":") if isinstance(spec, str) else ("", "", "")
        place = f"{scheme}:{os.path.normpath(target)}" if isinstance(spec, str) else id(spec)
        if place in kept:
            _log.warning(
                "esdmon: sinks= holds %s twice. Each reading is written to it once; leave one out.", shown(spec)
            )
        else:
            kept[place] = spec, is_automatic
    return list(kept.values())


def _name(spec: str | Sink, known: Plugins) -> str:
    """Return what a sink is called in messages, after the word `sink`."""
    return shown(spec) + (known.origin("sink", spec.partition(":")[0]) if isinstance(spec, str) else "")


def _automatic(known: Plugins) -> list[str | Sink]:
    """Return the sinks of "auto": the active W&B run, else TensorBoard, and JSONL in a new folder under `runs/`."""
    runs = Path("runs")
    whole = local_path("the folder runs", runs)
    try:
        folder = _new_folder(runs)
    except OSError as error:
        remedy = "Choose another working directory, or give sinks=: 'jsonl:PATH' or 'console', for example."
        raise unwritable(str(whole), error, remedy=remedy) from error
    sinks: list[str | Sink] = [f"jsonl:{folder / 'esdmon.jsonl'}"]
    how = f"`esdmon report {folder}` writes them to one HTML file"
    # A user who has begun a run of Weights & Biases looks there; who has not imported it, has not.
    if "wandb" in known.schemes and getattr(sys.modules.get("wandb"), "run", None) is not None:
        sinks.insert(0, "wandb")
        how = "they are in the active run of Weights & Biases"
    elif "tensorboard" in known.schemes and find_spec("tensorboard") is not None:
        sinks.insert(0, f"tensorboard:{folder}")
        how = f"`tensorboard --logdir {folder.parent}` shows them"
    if "wandb" in known.schemes and "wandb" not in sinks and find_spec("wandb") is not None:
        sinks.append("wandb:auto")  # for a run that is begun later
    notice(f"readings go to {whole / folder.name}; {how}.")
    return sinks


def _new_folder(parent: Path) -> Path:
    """Make a folder for a run, here and not by a sink, so that of runs started in one second each gets its own.

    Raises:
        OSError: where it cannot be made; FileExistsError where a file, or a link to nothing, has the parent's name.
    """
    parent.mkdir(exist_ok=True)
    name = f"esdmon-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    for n in itertools.count(1):
        folder = parent / (name if n == 1 else f"{name}-{n}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
