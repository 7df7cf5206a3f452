"""The sink `wandb`: every measure of every layer in the run that is active, alerts as its alerts.

Found by the entry-point group `esdmon`; Weights & Biases itself is imported when the sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon.sinks import Sink
from esdmon_wandb.late import LateWandbSink as LateWandbSink
from esdmon_wandb.sink import WandbSink as WandbSink


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Return `wandb`, for the run that is active, and `wandb:auto`, for one that may be begun later."""
    return {"wandb": _open}


def _open(target: str) -> Sink:
    return LateWandbSink() if target == "auto" else WandbSink.open(target)
