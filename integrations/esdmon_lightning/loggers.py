"""Open sinks for Lightning's loggers.

A logger is recognised by the methods of its experiment, since two packages define the classes of loggers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esdmon.sinks import ScalarLoggerSink
from esdmon_tensorboard import TensorBoardSink
from esdmon_trackers import comet, mlflow
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink


def sink_for(logger: Any) -> Sink:
    """Return the sink for a logger.

    TensorBoard, Weights & Biases, MLflow and Comet also get histograms and messages of alerts, as far as they support
    them; other loggers get the numbers.
    """
    experiment = _experiment(logger)
    # Test the class: a dummy experiment has any attribute, but is not a writer.
    if hasattr(type(experiment), "add_scalar"):
        return TensorBoardSink(experiment)
    if hasattr(type(experiment), "define_metric"):
        return WandbSink(experiment)
    if hasattr(type(experiment), "log_batch") and isinstance(getattr(logger, "run_id", None), str):
        return mlflow.sink_for(experiment, logger.run_id)
    if hasattr(type(experiment), "log_histogram_3d"):
        return comet.sink_for(experiment)

    def log(numbers: dict[str, float], step: int) -> None:
        logger.log_metrics(numbers, step=step)

    def flush() -> None:
        if hasattr(logger, "save"):
            logger.save()

    return ScalarLoggerSink(log, flush, place=logger)


def name_of(logger: Any) -> str:
    """Return a logger's name for messages: its class, and its folder if it has one."""
    try:
        folder = getattr(logger, "log_dir", None)
    except Exception:  # noqa: BLE001 -- a property of the user's own logger
        folder = None
    return f"{type(logger).__name__} ({folder})" if folder else type(logger).__name__


def _experiment(logger: Any) -> Any:
    """Return the experiment of a logger; None if it has none, since Lightning requires only `log_metrics`."""
    try:
        return getattr(logger, "experiment", None)
    except Exception:  # noqa: BLE001 -- a property of the user's own logger
        return None
