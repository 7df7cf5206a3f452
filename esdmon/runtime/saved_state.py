"""Build the state of a monitor for `state_dict()`; parse and check a saved one before anything is changed."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from esdmon.isolation import describe
from esdmon.records import Alert
from esdmon.records.serialization import Plain, Stateful, alert_from_plain, collecting_unknown, known, to_plain
from esdmon.version import installed_version

VERSION = 4
"""Version of the format of a state. Additional data of a part needs no new version: older versions of esdmon ignore
it."""
_NEW = ("escalation", "course")  # parts that states of this version may lack
_KEYS = ("version", "esdmon", "run", "steps", "alerts", "parts")
_PARTS = ("readings", "alerts", "reader", "escalation", "course")
_NAMED = 5  # keys that are named in a warning

_log = logging.getLogger("esdmon")


@dataclass(frozen=True, slots=True)
class SavedState:
    """A parsed state, from which a run can be continued."""

    run: str
    """The id of the run that saved it; empty in states of older versions."""
    steps: int
    alerts: list[Alert]
    continue_from: list[Callable[[], None]]
    """Functions that restore the parts."""


def as_state(run: str, steps: int, alerts: Iterable[Alert], parts: Mapping[str, Stateful]) -> Plain:
    """Return the state of a monitor, as plain data and tensors."""
    return {
        "version": VERSION,
        "esdmon": installed_version(),
        "run": run,
        "steps": steps,
        "alerts": [to_plain(alert) for alert in alerts],
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }


def parse(state: object, parts: Mapping[str, Stateful]) -> SavedState:
    """Return a parsed state for the parts of a monitor, without changing them.

    Additional data of a newer version is ignored, with a warning.

    Raises:
        ValueError: for anything but a state, for a state of an unknown version, or a damaged one.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        shown = sorted(map(str, state)) if isinstance(state, Mapping) else state
        msg = f"the state of a monitor has a version and a number of steps, got {shown!r}. Pass that of state_dict()"
        raise ValueError(msg)
    writer, ours = str(state.get("esdmon") or ""), installed_version()
    wrote = f"esdmon {writer}" if writer else "another version of esdmon"
    remedy = f"Install {wrote if writer else 'the version that wrote it'}, or continue without this state."
    if writer == ours:
        remedy = "Continue from an earlier state, or without one."
    if state["version"] != VERSION:
        raise ValueError(
            f"the state of a monitor has version {state['version']!r}, written by {wrote}; esdmon {ours} reads version "
            f"{VERSION}. {remedy}"
        )
    with collecting_unknown() as unknown:
        try:
            saved = _parse(state, parts)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the state of a monitor cannot be read: {describe(error)}. It was written by {wrote}, and this is "
                f"esdmon {ours}. {remedy}"
            ) from error
        if writer and writer != ours:  # additional keys in a state of this version are the user's
            known(state, _KEYS)
    if unknown:
        _log.warning(
            "esdmon: the state that is loaded was written by %s, and holds what esdmon %s does not know: %s. That is "
            "left out, the rest is restored. Install the version that wrote it to restore all.",
            wrote,
            ours,
            ", ".join(sorted(unknown)[:_NAMED]) + (", …" if len(unknown) > _NAMED else ""),
        )
    return saved


def _parse(state: Mapping[str, Any], parts: Mapping[str, Stateful]) -> SavedState:
    saved, steps = known(state["parts"], _PARTS), state["steps"]
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"the number of steps is {steps!r}")
    return SavedState(
        str(state.get("run", "")),
        steps,
        [alert_from_plain(alert) for alert in state["alerts"]],
        [part.prepare(saved[name]) for name, part in parts.items() if name in saved or name not in _NEW],
    )
