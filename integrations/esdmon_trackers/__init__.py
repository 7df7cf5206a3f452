"""Provide the sinks `mlflow`, `trackio`, `swanlab`, `comet` and `clearml` for trackers.

Each writes to the active run, which the user has begun, through `esdmon.sinks.ScalarLoggerSink`. Registered by
the entry-point group `esdmon`; a tracker itself is imported when its sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon.sinks import Sink
from esdmon_trackers import clearml, comet, mlflow, swanlab, trackio
from esdmon_trackers.runs import opener


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Register a scheme for each tracker, without a target: the active run is written to."""
    trackers = {"clearml": clearml, "comet": comet, "mlflow": mlflow, "swanlab": swanlab, "trackio": trackio}
    return {name: opener(name, tracker.active_sink) for name, tracker in trackers.items()}
