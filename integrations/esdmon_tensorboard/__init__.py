"""Provide the sink `tensorboard:DIR`, and the tab ESD of TensorBoard.

The sink is registered by the entry-point group `esdmon`. It writes measures and phases as scalars, spectra as
histograms and pictures, and alerts as text. The tab is registered by the group `tensorboard_plugins`. TensorBoard
itself is imported when a sink is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from esdmon_tensorboard.sink import TensorBoardSink as TensorBoardSink

hookimpl = HookimplMarker("esdmon")  # as `esdmon.hookimpl`, whose import loads all built-in plugins


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], TensorBoardSink]]:
    """Register the scheme `tensorboard:DIR`."""
    from esdmon_tensorboard.sink import TensorBoardSink  # noqa: PLC0415 -- see `__getattr__`

    return {"tensorboard": TensorBoardSink.open}


def __getattr__(name: str) -> Any:
    """Import the sink when it is first used, as a failing import here would keep TensorBoard from starting."""
    if name == "TensorBoardSink":
        from esdmon_tensorboard.sink import TensorBoardSink  # noqa: PLC0415

        return TensorBoardSink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
