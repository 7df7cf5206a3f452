"""Loading plugins and calling their hooks, each isolated from the others.

Why not pluggy's own loader and caller: its loader stops at the first entry point that fails to import, and its caller
stops at the first implementation that raises. Here one bad plugin is named in a warning and the others go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, ParamSpec, TypeVar, final

import pluggy

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.plugins import builtin, hookspecs

P = ParamSpec("P")
Result = TypeVar("Result")
DISABLE = "ESDMON_DISABLE_PLUGINS"
"""Environment variable: names of entry points that are not loaded, by commas; `*` for all."""
BUILT_IN_PLUGIN = "built-in"
LIMIT, SLOW = Limits().failures, Limits().slow_seconds
_ASKED_OF_EACH = ("esdmon_extract_matrices", "esdmon_materialize")  # to fail on three modules is no reason to stop

_log = logging.getLogger("esdmon")


@dataclass(frozen=True, slots=True)
class Listed:
    """A plugin that is known, for `esdmon plugins`."""

    name: str
    version: str = ""
    """The distribution it comes with, and its version."""
    source: str = ""
    """What its entry point names, or the module it was made in."""
    hooks: tuple[str, ...] = ()
    fault: str = ""
    """Why it is not used; empty where it is."""


@final
class Registry:
    """The plugins of one monitor: no global state, so that two with different plugins live in one process."""

    def __init__(self, extra: Iterable[object]) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._told: set[tuple[str, str, str]] = set()
        self._failed: dict[tuple[str, str], int] = {}
        """Failures in a row of a plugin in a hook."""
        self._listed: dict[str, Listed] = {}
        self.ours = {BUILT_IN_PLUGIN}
        """The plugins that esdmon brings itself."""
        self._register(builtin, Listed(BUILT_IN_PLUGIN, f"esdmon {version('esdmon')}", builtin.__name__))
        for entry_point in entry_points(group=hookspecs.NAME):
            self._load(entry_point)
        for plugin in extra:
            name = self._free_name(getattr(plugin, "__name__", type(plugin).__name__))
            self._register(plugin, Listed(name, source=getattr(plugin, "__name__", type(plugin).__module__)))

    @property
    def listed(self) -> tuple[Listed, ...]:
        """All that are known, also those that are not used."""
        return tuple(self._listed.values())

    @property
    def names(self) -> list[str]:
        """Those that are used, in the order of their registration, whatever a plugin says of its own place."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def has(self, hook: str) -> bool:
        """Whether any plugin implements it."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin, result) of each implementation that does not raise and does not answer None, the last first."""
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            plugin = impl.plugin_name
            if impl.wrapper or impl.hookwrapper:
                self.tell_once(plugin, hook, "it is a wrapper, and hooks are called one by one")
                continue
            if self._failed.get((plugin, hook), 0) >= LIMIT and hook not in _ASKED_OF_EACH:
                continue
            start = time.perf_counter()
            try:
                result = impl.function(*(arguments[name] for name in impl.argnames))
                self._failed[plugin, hook] = 0
            except Exception as error:  # noqa: BLE001 -- whatever a stranger's code raises
                self._failed[plugin, hook] = self._failed.get((plugin, hook), 0) + 1
                self.tell_once(plugin, hook, describe(error))
                continue
            if time.perf_counter() - start > SLOW:
                self.tell_once(plugin, hook, f"it took {time.perf_counter() - start:.1f} s", what="is slow")
            if result is not None:
                yield plugin, result

    def guarded(self, plugin: str, hook: str, function: Callable[P, Result]) -> Callable[P, Result]:
        """A function that a plugin has given: where it fails later, the log says whose it is."""

        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self.tell_once(plugin, hook, describe(error))
                raise

        return call

    def tell_once(self, plugin: str, hook: str, fault: str, *, what: str = "failed") -> None:
        """A warning for each plugin, hook and kind of fault."""
        if (plugin, hook, what) not in self._told:
            self._told.add((plugin, hook, what))
            self.tell(plugin, hook, fault, what=what)

    def tell(self, plugin: str, hook: str, fault: str, *, what: str = "failed") -> None:
        """A warning."""
        _log.warning("esdmon: plugin %r %s in %s: %s", plugin, what, hook, fault)

    def _load(self, entry_point: EntryPoint) -> None:
        name, target, dist = entry_point.name, entry_point.value, entry_point.dist
        listed = Listed(name, f"{dist.name} {dist.version}" if dist else "", target)
        disabled = {each.strip() for each in os.environ.get(DISABLE, "").split(",")}
        if name in disabled or "*" in disabled:
            self._listed.setdefault(name, replace(listed, fault=f"disabled by {DISABLE}"))
            return
        if self._manager.has_plugin(name):
            if self._manager.get_plugin(name) is not sys.modules.get(target):
                self._refuse(listed, "is not loaded", "there is another of that name", key=f"{name} ({target})")
            return
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever a stranger's import raises
            self._refuse(listed, "is not loaded", describe(error))
            return
        if dist and dist.name == "esdmon":
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
            _log.warning("esdmon: plugin %r has no hooks: mark its functions with @esdmon.hookimpl", name)

    def _refuse(self, listed: Listed, what: str, why: str, *, key: str = "") -> None:
        self._listed[key or listed.name] = replace(listed, fault=why)
        _log.warning("esdmon: plugin %r (%s) %s: %s", listed.name, listed.source, what, why)

    def _free_name(self, name: str) -> str:
        """The name, or `name-2`, `name-3` … where it is taken: two objects of one class are two plugins."""
        numbered = (f"{name}-{n}" for n in itertools.count(2))
        return next(free for free in itertools.chain([name], numbered) if not self._manager.has_plugin(free))
