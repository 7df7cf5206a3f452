"""Provide the sink `wandb`: it adds data to the rows of the active run, and sends alerts as W&B alerts.

Registered by the entry-point group `esdmon`. Weights & Biases itself is imported when a sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon.sinks import Sink
from esdmon_wandb.active_run import ActiveRunSink as ActiveRunSink
from esdmon_wandb.sink import WandbSink as WandbSink


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Register `wandb`, for the run that is active now, and `wandb:auto`, for one that may begin later."""
    return {"wandb": _open}


def _open(target: str) -> Sink:
    return ActiveRunSink() if target == "auto" else WandbSink.open(target)
