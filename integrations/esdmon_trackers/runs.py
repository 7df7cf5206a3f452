"""Open the sink of a tracker for its active run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esdmon.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from esdmon.sinks import Sink

_PACKAGES = {"comet": "comet_ml"}
_START = {
    "clearml": "clearml.Task.init()",
    "comet": "comet_ml.start()",
    "mlflow": "mlflow.start_run()",
    "swanlab": "swanlab.init()",
    "trackio": "trackio.init()",
}


def opener(name: str, active: Callable[[], Sink | None]) -> Callable[[str], Sink]:
    """Return the function that opens `name:`.

    Args:
        name: scheme of the sink, and name of the extra.
        active: returns a sink for the active run, or None if there is no run; imports the tracker.
    """

    def open_active(target: str) -> Sink:
        """Open a sink for the active run.

        Raises:
            MissingExtraError: without the package.
            InputError: without an active run, and for a target other than an empty text.
        """
        if target:
            raise InputError(f"unknown target '{name}:{target}'. Use '{name}' to write to the active run.")
        try:
            sink = active()
        except ImportError as error:
            raise MissingExtraError(f"the sink {name}", _PACKAGES.get(name, name), name) from error
        if sink is None:
            raise InputError(f"{name} has no active run: call {_START[name]} before")
        return sink

    return open_active
