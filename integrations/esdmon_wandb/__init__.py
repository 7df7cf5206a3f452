"""The sink `wandb`: every measure of every layer in the run that is active, alerts as its alerts.

Found by the entry-point group `esdmon`; Weights & Biases itself is imported when the sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon_wandb.sink import WandbSink as WandbSink


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], WandbSink]]:
    """`wandb`."""
    return {"wandb": WandbSink.open}
