"""Loading plugins and calling their hooks, each isolated from the others.

Why not pluggy's own loader and caller: its loader stops at the first entry point that fails to import, and its caller
stops at the first implementation that raises. Here one bad plugin is named in a warning and the others go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar, final

import pluggy

from esdmon.alerts import AlertRule
from esdmon.errors import InputError, nearest
from esdmon.faults import describe
from esdmon.plugins import builtin, hookspecs
from esdmon.records import Alert, LayerReport
from esdmon.sinks import Sink
from esdmon.spectrum import Measure

if TYPE_CHECKING:
    from torch import nn

    from esdmon.weights import Matrix

Item = TypeVar("Item", Measure, AlertRule)
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
        self._told: set[tuple[str, str]] = set()
        self._manager.register(builtin, name="built-in")
        for entry_point in entry_points(group=hookspecs.NAME):
            self._load(entry_point)
        if isinstance(extra, str) or not isinstance(extra, Iterable):
            msg = f"plugins= is a list of modules or objects with hooks, got {extra!r}"
            raise InputError(msg)
        for plugin in extra:
            self._register(plugin, self._free_name(getattr(plugin, "__name__", type(plugin).__name__)))
        self._sinks: dict[str, Callable[[str], Sink]] = self._collect("esdmon_register_sinks", _sinks)
        self.measures: dict[str, Measure] = self._collect("esdmon_register_measures", _measures)
        self.rules: dict[str, AlertRule] = self._collect("esdmon_register_alert_rules", _rules)

    def open_sink(self, spec: str | Sink) -> Sink:
        """`"scheme:target"` as a sink; an object that has a sink's methods as it is.

        Raises:
            InputError: for an unknown scheme, with the known ones; what the sink raises for a target it cannot use.
        """
        self.check_sink(spec)
        if not isinstance(spec, str):
            return spec
        scheme, _, target = spec.partition(":")
        return self._sinks[scheme](target)

    def check_sink(self, spec: str | Sink) -> None:
        """Whether it can be one, without opening it.

        Raises:
            InputError: for an unknown scheme, with the known ones; for an object without a sink's methods.
        """
        if isinstance(spec, str):
            scheme = spec.partition(":")[0]
            if scheme not in self._sinks:
                known = sorted(self._sinks)
                msg = f"no sink {scheme!r} (in {spec!r}); there are {', '.join(known)}.{nearest(scheme, known)}"
                raise InputError(msg)
            return
        if isinstance(spec, type):
            msg = f"a sink is 'scheme:target' or has write, alert, flush and close; {spec.__name__} is a class"
            raise InputError(msg)
        missing = [name for name in ("write", "alert", "flush", "close") if not callable(getattr(spec, name, None))]
        if missing:
            msg = f"a sink is 'scheme:target' or has write, alert, flush and close; {spec!r} has no {missing[0]}"
            raise InputError(msg)

    @property
    def schemes(self) -> frozenset[str]:
        """The sinks there are."""
        return frozenset(self._sinks)

    def extract(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
        """The matrices of a module by the first plugin that knows it."""
        from esdmon.weights import Matrix  # noqa: PLC0415 -- torch is loaded with the first model, not with a sink

        hook = "esdmon_extract_matrices"
        for plugin, matrices in self._call(hook, name=name, module=module):
            if isinstance(matrices, Sequence) and all(isinstance(matrix, Matrix) for matrix in matrices):
                return matrices
            self._tell_once(plugin, hook, f"returned {matrices!r}, which is no sequence of matrices")
        return None

    def on_alert(self, alert: Alert) -> None:
        """Tell every plugin."""
        for _ in self._call("esdmon_on_alert", alert=alert):
            pass

    def _load(self, entry_point: EntryPoint) -> None:
        disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
        name, target = entry_point.name, entry_point.value
        if name in disabled or "*" in disabled:
            return
        if self._manager.has_plugin(name):
            if self._manager.get_plugin(name) is not sys.modules.get(target):
                _log.warning("esdmon: plugin %r (%s) is not loaded: there is another of that name", name, target)
            return
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever a stranger's import raises
            _log.warning("esdmon: plugin %r (%s) is not loaded: %s", name, target, describe(error))
            return
        self._register(plugin, name)

    def _free_name(self, name: str) -> str:
        """The name, or `name-2`, `name-3` … where it is taken: two objects of one class are two plugins."""
        numbered = (f"{name}-{n}" for n in itertools.count(2))
        return next(free for free in itertools.chain([name], numbered) if not self._manager.has_plugin(free))

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            _log.warning("esdmon: plugin %r is not used: %s", name, describe(error))
            return
        if not self._manager.get_hookcallers(plugin):
            _log.warning("esdmon: plugin %r has no hooks: mark its functions with @esdmon.hookimpl", name)

    def _call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin, result) of each implementation that does not raise and does not answer None, the last first."""
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            if impl.wrapper or impl.hookwrapper:
                self._tell_once(impl.plugin_name, hook, "it is a wrapper, and hooks are called one by one")
                continue
            try:
                result = impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as error:  # noqa: BLE001 -- whatever a stranger's code raises
                self._tell_once(impl.plugin_name, hook, describe(error))
                continue
            if result is not None:
                yield impl.plugin_name, result

    def _tell_once(self, plugin: str, hook: str, fault: str) -> None:
        if (plugin, hook) not in self._told:
            self._told.add((plugin, hook))
            _log.warning("esdmon: plugin %r failed in %s: %s", plugin, hook, fault)

    def _collect(self, hook: str, named: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """All that the plugins register by name, what is built in first; a name that is taken is refused."""
        taken: dict[str, Any] = {}
        order = {name: place for place, (name, _) in enumerate(self._manager.list_name_plugin())}
        # In the order of registration, whatever a plugin says of its own place.
        for plugin, items in sorted(self._call(hook), key=lambda answer: order[answer[0]]):
            try:
                new = named(items)
            except Exception as error:  # noqa: BLE001 -- a stranger's generator, say
                self._tell_once(plugin, hook, f"what it returned cannot be used: {describe(error)}")
                continue
            for name in taken.keys() & new.keys():
                _log.warning("esdmon: plugin %r failed in %s: the name %r is taken already", plugin, hook, name)
            taken |= {name: item for name, item in new.items() if name not in taken}
        return taken


def _measures(items: Iterable[Any]) -> dict[str, Measure]:
    # A measure stands among the fields of a layer's record.
    fields = {*LayerReport("", "ok", 0).to_record(), "schema", "kind"}
    measures = _named(items, Measure)
    for name in measures:
        if name in fields or name.endswith("_null"):
            msg = f"{name!r} is the name of a field of the records: choose another for the measure"
            raise ValueError(msg)
    return measures


def _rules(items: Iterable[Any]) -> dict[str, AlertRule]:
    return _named(items, AlertRule)


def _sinks(items: Mapping[str, Any]) -> dict[str, Any]:
    for scheme, factory in items.items():
        if not callable(factory):
            msg = f"the sink {scheme!r} is {factory!r}, which cannot be called"
            raise TypeError(msg)
    return dict(items)


def _named(items: Iterable[Any], kind: type[Item]) -> dict[str, Item]:
    named: dict[str, Item] = {}
    for item in items:
        if not isinstance(item, kind):
            msg = f"{item!r} is no {kind.__name__}"
            raise TypeError(msg)
        if item.name in named:
            msg = f"it names two things {item.name!r}"
            raise ValueError(msg)
        named[item.name] = item
    return named
