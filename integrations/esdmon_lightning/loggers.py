"""Lightning's loggers as sinks. Known by what their experiment offers, since two packages define each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from esdmon.tags import scalars
from esdmon_tensorboard import TensorBoardSink
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon import Alert, Report
    from esdmon.sinks import Sink


def sink_for(logger: Any) -> Sink:
    """TensorBoard and Weights & Biases get all that they can show; any other logger the numbers."""
    experiment = logger.experiment
    if hasattr(experiment, "add_scalar"):
        return TensorBoardSink(experiment)
    if hasattr(experiment, "define_metric"):
        return WandbSink(experiment, host_axis="trainer/global_step")
    return LoggerSink(logger)


@final
class LoggerSink:
    """Writes the tags of `esdmon.tags` through `log_metrics`."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def write(self, report: Report) -> None:
        """One call."""
        self._logger.log_metrics(scalars(report), step=report.x)

    def alert(self, alert: Alert) -> None:
        """Nothing: loggers have no place for words. The log has them."""

    def flush(self) -> None:
        """Have the logger write what it holds."""
        self._logger.save()

    def close(self) -> None:
        """Likewise: the Trainer ends its loggers."""
        self._logger.save()
