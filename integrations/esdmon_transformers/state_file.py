"""Save and load the monitor's state as the file `esdmon.pt` in a checkpoint of the Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from esdmon.isolation import describe
from esdmon_transformers import folders

FILE = "esdmon.pt"


def save(state: dict[str, Any], checkpoints: Iterable[Path], *, identity: str) -> None:
    """Write the state atomically into the checkpoint that the Trainer has just written.

    Args:
        state: state of the monitor.
        checkpoints: folders that the checkpoint may be in.
        identity: an id that the Trainer's own state of that checkpoint contains, and no other.
    """
    for folder in checkpoints:
        file, new = folder / folders.STATE, folder / f"{FILE}.new"
        if file.is_file() and identity in file.read_text(encoding="utf-8"):
            try:
                torch.save(state | {"id": identity}, new)
                new.replace(folder / FILE)
            finally:
                new.unlink(missing_ok=True)
            return


def load(checkpoints: Iterable[Path], *, identity: str) -> tuple[dict[str, Any] | None, str]:
    """Return the state with that id, or None, and the reason if there is none.

    Args:
        checkpoints: folders that the checkpoint may be in.
        identity: the id in the Trainer's state; empty if it has none.
    """
    why = "is missing"
    for folder in checkpoints if identity else ():
        if not (folder / FILE).is_file():
            continue
        try:
            found = dict(torch.load(folder / FILE, weights_only=True))
        except Exception as error:  # noqa: BLE001 -- a file that was cut short raises anything
            why = f"cannot be read ({describe(error)})"
            continue
        if found.pop("id", None) == identity:
            return found, ""
        why = "is that of another run"
    return None, why
