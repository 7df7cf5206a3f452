"""The sink `tensorboard:DIR`: every measure and the phase of every layer as a scalar, alerts as text.

Found by the entry-point group `esdmon`; TensorBoard itself is imported when the sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon_tensorboard.sink import TensorBoardSink as TensorBoardSink


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], TensorBoardSink]]:
    """`tensorboard:DIR`."""
    return {"tensorboard": TensorBoardSink.open}
