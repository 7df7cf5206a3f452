"""Lightning's loggers as sinks. Known by what their experiment offers, since two packages define each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esdmon.hosts import NumbersSink
from esdmon_tensorboard import TensorBoardSink
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink


def sink_for(logger: Any) -> Sink:
    """TensorBoard and Weights & Biases get all that they can show; any other logger the numbers."""
    experiment = logger.experiment
    if hasattr(experiment, "add_scalar"):
        return TensorBoardSink(experiment)
    if hasattr(experiment, "define_metric"):
        return WandbSink(experiment)
    return NumbersSink(lambda numbers, step: logger.log_metrics(numbers, step=step), logger.save, place=logger)
