"""Provide the sinks `mlflow`, `trackio`, `swanlab`, `comet` and `clearml` for trackers.

Each writes to the active run, which the user has begun, through `esdmon.sinks.ScalarLoggerSink`. Registered by
the entry-point group `esdmon`; a tracker itself is imported when its sink is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esdmon import hookimpl
from esdmon.errors import InputError, MissingExtraError
from esdmon.sinks import Sink
from esdmon_trackers import clearml, comet, mlflow, swanlab, trackio


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Register a scheme for each tracker, without a target: the active run is written to."""
    trackers = (
        _Tracker("clearml", clearml.active_sink, begin="clearml.Task.init()"),
        _Tracker("comet", comet.active_sink, begin="comet_ml.start()", package="comet_ml"),
        _Tracker("mlflow", mlflow.active_sink, begin="mlflow.start_run()"),
        _Tracker("swanlab", swanlab.active_sink, begin="swanlab.init()"),
        _Tracker("trackio", trackio.active_sink, begin="trackio.init()"),
    )
    return {tracker.name: tracker.open for tracker in trackers}


@dataclass(frozen=True, slots=True)
class _Tracker:
    """A tracker whose active run is written to."""

    name: str
    """Scheme of the sink, and name of the extra."""
    active_sink: Callable[[], Sink | None]
    """Imports the tracker, and returns a sink for the active run, or None if there is no run."""
    begin: str
    """The call that begins a run."""
    package: str = ""
    """The package to install, if it is not `name`."""

    def open(self, target: str) -> Sink:
        """Open a sink for the active run.

        Raises:
            MissingExtraError: without the package.
            InputError: without an active run, and for a target other than an empty text.
        """
        if target:
            raise InputError(f"unknown target '{self.name}:{target}'. Use '{self.name}' to write to the active run.")
        try:
            sink = self.active_sink()
        except ImportError as error:
            raise MissingExtraError(f"the sink {self.name}", self.package or self.name, self.name) from error
        if sink is None:
            raise InputError(f"{self.name} has no active run: call {self.begin} before")
        return sink
