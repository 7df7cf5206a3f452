"""Lightning's loggers as sinks. Known by what their experiment offers, since two packages define each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esdmon.sinks import ScalarLoggerSink
from esdmon_tensorboard import TensorBoardSink
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink


def sink_for(logger: Any) -> Sink:
    """Return the sink for a logger: TensorBoard and Weights & Biases get all that they can show, others the numbers."""
    experiment = _experiment(logger)
    # Of the class: an object that answers to any name, as a dummy does, is neither of them.
    if hasattr(type(experiment), "add_scalar"):
        return TensorBoardSink(experiment)
    if hasattr(type(experiment), "define_metric"):
        return WandbSink(experiment)
    return ScalarLoggerSink(
        lambda numbers, step: logger.log_metrics(numbers, step=step), getattr(logger, "save", int), place=logger
    )


def name_of(logger: Any) -> str:
    """Return what a logger is called in messages: its class, and where it writes if it says so."""
    try:
        folder = getattr(logger, "log_dir", None)
    except Exception:  # noqa: BLE001 -- a property of the user's own logger
        folder = None
    return f"{type(logger).__name__} ({folder})" if folder else type(logger).__name__


def _experiment(logger: Any) -> Any:
    """Return what a logger writes by. It need not have one: Lightning asks for `log_metrics` only."""
    try:
        return getattr(logger, "experiment", None)
    except Exception:  # noqa: BLE001 -- a property of the user's own logger
        return None
