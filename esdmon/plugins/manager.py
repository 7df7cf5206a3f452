"""Loading plugins and calling their hooks, each isolated from the others.

Why not pluggy's own loader and caller: its loader stops at the first entry point that fails to import, and its caller
stops at the first implementation that raises. Here one bad plugin is named in a warning and the others go on.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, final

import pluggy

from esdmon.errors import InputError, nearest
from esdmon.plugins import builtin, hookspecs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from esdmon.alerts import AlertRule
    from esdmon.records import Alert
    from esdmon.sinks import Sink
    from esdmon.spectrum import Measure
    from esdmon.weights import Matrix

_log = logging.getLogger("esdmon")
DISABLE = "ESDMON_DISABLE_PLUGINS"
"""Environment variable: names of entry points that are not loaded, by commas; `*` for all."""


@final
class Plugins:
    """What a monitor gets from the plugins that are installed, and from those it is given.

    One manager a monitor: no global state, so that two monitors with different plugins live in one process.
    """

    def __init__(self, extra: Iterable[object] = ()) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(builtin, name="built-in")
        for entry_point in entry_points(group=hookspecs.NAME):
            self._load(entry_point)
        for plugin in extra:
            self._register(plugin, getattr(plugin, "__name__", type(plugin).__name__))
        self._sinks: dict[str, Callable[[str], Sink]] = self._collect("esdmon_register_sinks", _by_scheme)
        self.measures: dict[str, Measure] = self._collect("esdmon_register_measures", _by_name)
        self.rules: dict[str, AlertRule] = self._collect("esdmon_register_alert_rules", _by_name)

    def open_sink(self, spec: str | Sink) -> Sink:
        """`"scheme:target"` as a sink; an object that has a sink's methods as it is.

        Raises:
            InputError: for an unknown scheme, with the known ones; what the sink raises for a target it cannot use.
        """
        if not isinstance(spec, str):
            missing = [name for name in ("write", "alert", "flush", "close") if not callable(getattr(spec, name, None))]
            if missing:
                msg = f"a sink is 'scheme:target' or has write, alert, flush and close; {spec!r} has no {missing[0]}"
                raise InputError(msg)
            return spec
        scheme, _, target = spec.partition(":")
        if scheme not in self._sinks:
            known = sorted(self._sinks)
            msg = f"no sink {scheme!r} (in {spec!r}); there are {', '.join(known)}.{nearest(scheme, known)}"
            raise InputError(msg)
        return self._sinks[scheme](target)

    @property
    def schemes(self) -> frozenset[str]:
        """The sinks there are."""
        return frozenset(self._sinks)

    def extract(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
        """The matrices of a module by the first plugin that knows it."""
        for _, matrices in self._call("esdmon_extract_matrices", name=name, module=module):
            found: Sequence[Matrix] = matrices
            return found
        return None

    def on_alert(self, alert: Alert) -> None:
        """Tell every plugin."""
        for _ in self._call("esdmon_on_alert", alert=alert):
            pass

    def _load(self, entry_point: EntryPoint) -> None:
        disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
        if entry_point.name in disabled or "*" in disabled or self._manager.has_plugin(entry_point.name):
            return
        try:
            plugin = entry_point.load()
        except Exception as error:  # noqa: BLE001 -- whatever a stranger's import raises
            _log.warning("plugin %r (%s) is not loaded: %r", entry_point.name, entry_point.value, error)
            return
        self._register(plugin, entry_point.name)

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            _log.warning("plugin %r is not used: %s", name, str(error).replace("\n", " "))

    def _call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin, result) of each implementation that does not raise and does not answer None, the last first."""
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                result = impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as error:  # noqa: BLE001 -- whatever a stranger's code raises
                _log.warning("plugin %r failed in %s: %r", impl.plugin_name, hook, error)
                continue
            if result is not None:
                yield impl.plugin_name, result

    def _collect(self, hook: str, named: Callable[[Any], Iterable[tuple[str, Any]]]) -> dict[str, Any]:
        """All that the plugins register by name, what is built in first; a name that is taken is refused."""
        taken: dict[str, Any] = {}
        for plugin, items in reversed(list(self._call(hook))):
            try:
                new = dict(named(items))
            except (AttributeError, TypeError, ValueError) as error:
                _log.warning("plugin %r: what %s returned cannot be used: %r", plugin, hook, error)
                continue
            for name in taken.keys() & new.keys():
                _log.warning("plugin %r: the name %r is taken already (in %s)", plugin, name, hook)
            taken |= {name: item for name, item in new.items() if name not in taken}
        return taken


def _by_name(items: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return [(item.name, item) for item in items]


def _by_scheme(items: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return items.items()
