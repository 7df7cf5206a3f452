"""esdmon watches the eigenvalue spectra of a network's weights while it trains.

Names are loaded when they are first used, so that `import esdmon` costs nothing and `esdmon.spectrum` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esdmon.analysis import analyze as analyze
    from esdmon.errors import EsdmonError as EsdmonError
    from esdmon.errors import InputError as InputError
    from esdmon.errors import MissingExtraError as MissingExtraError
    from esdmon.plugins import hookimpl as hookimpl
    from esdmon.records import Alert as Alert
    from esdmon.records import Coverage as Coverage
    from esdmon.records import LayerReport as LayerReport
    from esdmon.records import Report as Report
    from esdmon.replay.loading import Run as Run
    from esdmon.replay.loading import load as load
    from esdmon.runtime.monitor import Monitor as Monitor
    from esdmon.spectrum import Phase as Phase
    from esdmon.spectrum import Spectrum as Spectrum
    from esdmon.watching import watch as watch

_HOME = {
    "Alert": "records",
    "Coverage": "records",
    "EsdmonError": "errors",
    "InputError": "errors",
    "LayerReport": "records",
    "MissingExtraError": "errors",
    "Monitor": "runtime.monitor",
    "Phase": "spectrum",
    "Report": "records",
    "Run": "replay.loading",
    "Spectrum": "spectrum",
    "analyze": "analysis",
    "hookimpl": "plugins",
    "load": "replay.loading",
    "watch": "watching",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("esdmon.version").installed_version()
    if name not in _HOME:
        raise AttributeError(f"module 'esdmon' has no attribute {name!r}")
    value = getattr(import_module(f"esdmon.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_HOME, "__version__", *(name for name in globals() if name.startswith("__"))})
