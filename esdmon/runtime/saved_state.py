"""The state of a monitor, as `state_dict()` returns it, read and checked before anything is changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esdmon.isolation import describe
from esdmon.records import Alert
from esdmon.records.serialization import Stateful, alert_from_plain

VERSION = 4
_NEW = ("escalation",)  # parts that states of this version may lack


@dataclass(frozen=True, slots=True)
class SavedState:
    """A state that can be continued from."""

    run: str
    """The id of the run that saved it; empty in states of older versions."""
    steps: int
    alerts: list[Alert]
    continue_from: list[Callable[[], None]]
    """Functions that make each part continue from its state."""


def parse(state: object, parts: Mapping[str, Stateful]) -> SavedState:
    """Return a state, read for the parts of a monitor, which are not changed.

    Raises:
        ValueError: for anything else than a state of this version, or a damaged one.
    """
    steps = state.get("steps") if isinstance(state, Mapping) and state.get("version") == VERSION else None
    if not isinstance(state, Mapping) or not isinstance(steps, int) or steps < 0:
        shown = sorted(map(str, state)) if isinstance(state, Mapping) else state
        raise ValueError(f"the state of a monitor has version {VERSION} and a number of steps, got {shown!r}")
    try:
        return SavedState(
            str(state.get("run", "")),
            steps,
            [alert_from_plain(alert) for alert in state["alerts"]],
            [
                part.prepare(state["parts"][name])
                for name, part in parts.items()
                if name in state["parts"] or name not in _NEW
            ],
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"the state of a monitor is damaged: {describe(error)}") from error
