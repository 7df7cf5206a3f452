"""Open sinks for the trackers of Accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from esdmon.calls import explain_wrong_calls
from esdmon.sinks import ScalarLoggerSink
from esdmon_tensorboard import TensorBoardSink
from esdmon_trackers import clearml, comet, mlflow, swanlab, trackio
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink

_SINKS: dict[str, Callable[[Any], Sink]] = {
    "clearml": lambda tracker: clearml.sink_for(tracker.task),
    "comet_ml": lambda tracker: comet.sink_for(tracker.writer),
    "mlflow": lambda tracker: mlflow.sink_for_run(tracker.active_run.info.run_id),
    "swanlab": lambda tracker: swanlab.sink_for(tracker.run),
    "tensorboard": lambda tracker: TensorBoardSink(tracker.writer),
    "trackio": lambda tracker: trackio.sink_for(tracker.run),
    "wandb": lambda tracker: WandbSink(tracker.run),
}


@explain_wrong_calls
def tracker_sinks(accelerator: Any) -> list[Sink]:
    """Return a sink for each tracker of an accelerator; call `accelerator.init_trackers(...)` first.

    TensorBoard, Weights & Biases, MLflow, trackio, SwanLab, Comet and ClearML also get histograms, messages of alerts
    and tables, if they support them; other trackers get numbers only. Only the main rank writes.
    """
    return [_sink_for(tracker) for tracker in accelerator.trackers if _writes(tracker, accelerator)]


def _sink_for(tracker: Any) -> Sink:
    if tracker.name in _SINKS:
        return _SINKS[tracker.name](tracker)
    return ScalarLoggerSink(lambda numbers, step: tracker.log(numbers, step=step), place=tracker)


def _writes(tracker: Any, accelerator: Any) -> bool:
    """Return False for a tracker that begins its run on the main rank only, on another rank."""
    return bool(accelerator.is_main_process) or tracker.name not in _SINKS
