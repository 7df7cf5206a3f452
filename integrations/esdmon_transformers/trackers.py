"""Sinks for the trackers of Accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esdmon.sinks import ScalarLoggerSink
from esdmon_tensorboard import TensorBoardSink
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink


def tracker_sinks(accelerator: Any) -> list[Sink]:
    """Return a sink for each tracker of an accelerator; call `accelerator.init_trackers(...)` first.

    TensorBoard and Weights & Biases get numbers, histograms, pictures and alerts; other trackers get the numbers.
    """
    return [_sink_for(tracker) for tracker in accelerator.trackers]


def _sink_for(tracker: Any) -> Sink:
    if tracker.name == "tensorboard":
        return TensorBoardSink(tracker.writer)
    if tracker.name == "wandb":
        return WandbSink(tracker.run)
    return ScalarLoggerSink(lambda numbers, step: tracker.log(numbers, step=step), place=tracker)
