"""The sink `tensorboard:DIR`: measures and phases as scalars, spectra as histograms and pictures, alerts as text.

Registered by the entry-point group `esdmon`. TensorBoard itself is imported when a sink is opened.
"""

from collections.abc import Callable, Mapping

from esdmon import hookimpl
from esdmon_tensorboard.sink import TensorBoardSink as TensorBoardSink


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], TensorBoardSink]]:
    """Register the scheme `tensorboard:DIR`."""
    return {"tensorboard": TensorBoardSink.open}
