"""Load plugins and call their hooks, each isolated from the others.

Why not pluggy's own loader and caller: its loader stops at the first entry point that fails to import, and its caller
stops at the first implementation that raises. Here one bad plugin is named in a warning and the others go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, ParamSpec, TypeVar, final

import pluggy

from esdmon.isolation import Faults, describe, let_through
from esdmon.limits import Limits
from esdmon.plugins import builtin, hookspecs
from esdmon.version import installed_version

P = ParamSpec("P")
Result = TypeVar("Result")
DISABLE = "ESDMON_DISABLE_PLUGINS"
"""Environment variable: comma-separated names of entry points that are not loaded; `*` for all."""
BUILT_IN_PLUGIN = "built-in"
_SLOW = Limits().slow_seconds

_log = logging.getLogger("esdmon")


@dataclass(frozen=True, slots=True)
class Listed:
    """A plugin that was found, as `esdmon plugins` lists it."""

    name: str
    version: str = ""
    """Distribution and version, as `esdmon-egg 0.1.0`."""
    source: str = ""
    """Target of its entry point, or the module of its class."""
    hooks: tuple[str, ...] = ()
    fault: str = ""
    """Reason why it is not used; empty if it is used."""

    @property
    def is_broken(self) -> bool:
        """Return whether it cannot be used; one that the user has disabled can."""
        return bool(self.fault) and DISABLE not in self.fault


@final
class Registry:
    """Holds the plugins of one monitor: no global state, so that monitors in one process can have different plugins."""

    def __init__(self, extra: Iterable[object]) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._logged: set[tuple[str, str, str]] = set()
        self.faults = Faults()
        """Failures of the hooks of a run; a monitor puts its own here."""
        self._listed: dict[str, Listed] = {}
        self.ours = {BUILT_IN_PLUGIN}
        """Names of the plugins that are part of esdmon."""
        self._register(builtin, Listed(BUILT_IN_PLUGIN, f"esdmon {installed_version()}", builtin.__name__))
        owner_of = cache(_owner)  # of several entry points of one distribution the file is parsed once
        for entry_point in entry_points(group=hookspecs.NAME):
            self._load(entry_point, *owner_of(entry_point.dist))
        for plugin in extra:
            name = self._free_name(getattr(plugin, "__name__", type(plugin).__name__))
            self._register(plugin, Listed(name, source=getattr(plugin, "__name__", type(plugin).__module__)))

    @property
    def listed(self) -> tuple[Listed, ...]:
        """Plugins that were found, including those that are not used."""
        return tuple(self._listed.values())

    @property
    def names(self) -> list[str]:
        """Plugins that are used, in order of registration; pluggy's `tryfirst` and `trylast` are ignored."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def has(self, hook: str) -> bool:
        """Return whether any plugin implements a hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Yield (plugin, result) of each implementation that returns something, the one registered last first.

        For hooks of a model and of its parts: a failure is logged once, and the hook is called for the next module,
        since three modules that fail do not mean that the next one does.
        """
        for plugin, function in self._implementations(hook, arguments):
            start = time.perf_counter()
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 -- a plugin may raise anything
                let_through(error)
                self.warn_once(plugin, hook, describe(error))
                continue
            took = time.perf_counter() - start
            if took > _SLOW and plugin not in self.ours:  # those of esdmon are slow where a disk is, at their import
                self.warn_once(plugin, hook, f"it took {took:.1f} s", what="is slow")
            if result is not None:
                yield plugin, result

    def call_at(self, step: int, hook: str, /, *, pauses: bool = True, **arguments: Any) -> Iterator[Any]:
        """Yield the results of a hook that is called again and again in a run, in the order of `call`.

        A hook that keeps failing is paused and tried again by `faults`, as every other part of a monitor; without
        `pauses` its failures are only counted, and logged once.
        """
        for plugin, function in self._implementations(hook, arguments):
            who = f"hook {hook} (plugin {plugin!r})"
            if self.faults.disabled(who):
                continue
            result = None
            with self.faults.isolated(who, step, is_timed=True, pauses=pauses):
                result = function()
            if result is not None:
                yield result

    def guarded(self, plugin: str, hook: str, function: Callable[P, Result]) -> Callable[P, Result]:
        """Wrap a function of a plugin, so that its failures are logged with the plugin and the hook."""

        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self.warn_once(plugin, hook, describe(error))
                raise

        return call

    def warn_once(self, plugin: str, hook: str, fault: str, *, what: str = "failed") -> None:
        """Log a fault, once for each plugin, hook and kind."""
        if (plugin, hook, what) not in self._logged:
            self._logged.add((plugin, hook, what))
            self.warn(plugin, hook, fault, what=what)

    def warn(self, plugin: str, hook: str, fault: str, *, what: str = "failed") -> None:
        """Log a fault of a plugin."""
        _log.warning("esdmon: plugin %r %s in %s: %s", plugin, what, hook, fault)

    def _implementations(self, hook: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield (plugin, call) of each implementation: the call passes the arguments that the implementation names."""
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            plugin = impl.plugin_name
            if impl.wrapper or impl.hookwrapper:
                self.warn_once(plugin, hook, "it is a wrapper, which is not supported: hooks are called one by one")
                continue
            yield plugin, partial(impl.function, *(arguments[name] for name in impl.argnames))

    def _load(self, entry_point: EntryPoint, owner: str, version: str) -> None:
        name, target = entry_point.name, entry_point.value
        listed = Listed(name, f"{owner} {version}".strip(), target)
        disabled = {each.strip() for each in os.environ.get(DISABLE, "").split(",")}
        if name in disabled or "*" in disabled:
            self._listed.setdefault(name, replace(listed, fault=f"disabled by {DISABLE}"))
            return
        if self._manager.has_plugin(name):
            if self._manager.get_plugin(name) is not sys.modules.get(target):
                self._refuse(listed, "is not loaded", "another plugin has this name", key=f"{name} ({target})")
            return
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- an import may raise anything
            self._refuse(listed, "is not loaded", describe(error))
            return
        if owner == "esdmon":
            self.ours.add(name)
        self._register(plugin, listed)

    def _register(self, plugin: object, listed: Listed) -> None:
        name = listed.name
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            self._refuse(listed, "is not used", describe(error))
            return
        hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ()))
        self._listed[name] = replace(listed, hooks=hooks, fault="" if hooks else "it has no hooks")
        if not hooks:
            _log.warning(
                "esdmon: plugin %r has no hooks and is not used: mark its functions with @esdmon.hookimpl", name
            )

    def _refuse(self, listed: Listed, what: str, why: str, *, key: str = "") -> None:
        self._listed[key or listed.name] = replace(listed, fault=why)
        _log.warning("esdmon: plugin %r (%s) %s: %s", listed.name, listed.source, what, why)

    def _free_name(self, name: str) -> str:
        """Return the name, or `name-2`, `name-3`, … if it is taken: two objects of one class are two plugins."""
        numbered = (f"{name}-{n}" for n in itertools.count(2))
        return next(free for free in itertools.chain([name], numbered) if not self._manager.has_plugin(free))


def _owner(distribution: Distribution | None) -> tuple[str, str]:
    """Return name and version of a distribution; empty texts for none."""
    if distribution is None:
        return "", ""
    metadata = distribution.metadata  # asked once for both: each access parses a file
    return metadata["Name"], metadata["Version"]
