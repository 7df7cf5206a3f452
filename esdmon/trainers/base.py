"""What the trainer callbacks share: copying, resuming, and the default JSONL file.

Failures never stop the trainer: a part that fails is left out, and the log says so once.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esdmon.isolation import describe
from esdmon.runtime.monitor import Monitor
from esdmon.trainers.options import CallbackOptions

_log = logging.getLogger("esdmon")


class CopiedByOptions:
    """A base class whose copies and pickles hold only the options, without the state of a run."""

    _given: CallbackOptions

    def __getstate__(self) -> dict[str, Any]:
        """Return the options."""
        return {"_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the options, with the state of a new callback."""
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        """Reset the state of a run."""
        raise NotImplementedError


def resume(monitor: Monitor, state: Mapping[str, Any], *, steps: int, strict: bool) -> bool:
    """Load a state from a trainer's checkpoint; a failure is logged.

    Args:
        monitor: the new monitor.
        state: its saved `state_dict`.
        steps: steps of the trainer, which replace those of the state.
        strict: raise instead of logging.

    Returns:
        True if the state was loaded.
    """
    try:
        monitor.load_state_dict(dict(state) | {"steps": steps})
    except Exception as error:
        if strict:
            raise
        _log.warning(
            "esdmon: the state in the checkpoint of step %d cannot be loaded: %s. Monitoring continues without "
            "earlier alerts and readings.",
            steps,
            describe(error),
        )
        return False
    return True


def own_jsonl(root: str | os.PathLike[str], *, goes_on: bool) -> str:
    """Return the default sink of a trainer without loggers: `jsonl:ROOT/esdmon-N/esdmon.jsonl`.

    Args:
        root: output folder of the trainer.
        goes_on: True for a resumed run, which appends to the highest N; False takes the next N.
    """
    files = (Path(root) / f"esdmon-{n}" / "esdmon.jsonl" for n in itertools.count(1))
    newest = file = next(files)
    while file.exists():
        newest, file = file, next(files)
    return f"jsonl:{newest if goes_on else file}"
