"""The trackers of Accelerate as sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from esdmon.tags import scalars
from esdmon_tensorboard import TensorBoardSink
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon import Alert, Report
    from esdmon.sinks import Sink


def tracker_sinks(accelerator: Any) -> list[Sink]:
    """A sink for each tracker of `accelerator.init_trackers(...)`, which is to be called before."""
    return [_sink_for(tracker) for tracker in accelerator.trackers]


def _sink_for(tracker: Any) -> Sink:
    if tracker.name == "tensorboard":
        return TensorBoardSink(tracker.writer)
    if tracker.name == "wandb":
        return WandbSink(tracker.run)
    return TrackerSink(tracker)


@final
class TrackerSink:
    """Writes the tags of `esdmon.tags` through `log`."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def write(self, report: Report) -> None:
        """One call."""
        self._tracker.log(scalars(report), step=report.x)

    def alert(self, alert: Alert) -> None:
        """Nothing: trackers have no place for words. The log has them."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: the accelerator ends its trackers."""
