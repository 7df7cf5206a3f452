"""`Plugins`: what a monitor gets from the plugins that are installed, and from those it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

from esdmon.alerts import AlertRule
from esdmon.errors import InputError, nearest
from esdmon.isolation import describe
from esdmon.plugins.registry import BUILT_IN_PLUGIN, Listed, Registry
from esdmon.records import Alert, LayerReport
from esdmon.schedule import Schedule
from esdmon.sinks import Sink
from esdmon.spectrum import Measure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from esdmon.weights import Matrix

Item = TypeVar("Item", Measure, AlertRule)
Kind = Literal["sink", "measure", "rule"]
_REGISTERS = {
    "sink": "esdmon_register_sinks",
    "measure": "esdmon_register_measures",
    "rule": "esdmon_register_alert_rules",
}


@final
class Plugins:
    """Measures, rules and sinks by name, whose they are, and the hooks that are called while a run goes on."""

    def __init__(self, extra: Iterable[object] = ()) -> None:
        if isinstance(extra, str) or not isinstance(extra, Iterable):
            msg = f"plugins= is a list of modules or objects with hooks, got {extra!r}"
            raise InputError(msg)
        self._registry = Registry(extra)
        self._owners: dict[tuple[str, str], str] = {}
        self._sinks: dict[str, Callable[[str], Sink]] = self._collect("sink", _sinks)
        self.measures: dict[str, Measure] = self._collect("measure", _measures)
        self.rules: dict[str, AlertRule] = self._collect("rule", _rules)
        self.schedule: Schedule | None = self._is_due if self._registry.has("esdmon_schedule") else None
        """When the plugins want to read; None where none of them says."""

    @property
    def listed(self) -> tuple[Listed, ...]:
        """All plugins that are known, also those that are not used."""
        return self._registry.listed

    @property
    def schemes(self) -> frozenset[str]:
        """The sinks there are."""
        return frozenset(self._sinks)

    def who(self, kind: Kind, name: str) -> str:
        """What a measure, rule or sink is called in messages: `measure alpha`, with the plugin if it is another's."""
        return f"{kind} {name}{self.whose(kind, name)}"

    def whose(self, kind: Kind, name: str) -> str:
        """` (plugin 'egg', esdmon_register_measures)`; nothing for what is our own."""
        if not self.is_foreign(kind, name):
            return ""
        return f" (plugin {self._owners[kind, name]!r}, {_REGISTERS[kind]})"

    def is_foreign(self, kind: Kind, name: str) -> bool:
        """Whether it is brought by a plugin that is not our own."""
        return self._owners.get((kind, name), BUILT_IN_PLUGIN) not in self._registry.ours

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
                msg = f"no sink {scheme!r} (in {shown(spec)!r}); there are {', '.join(known)}.{nearest(scheme, known)}"
                raise InputError(msg)
            return
        if isinstance(spec, type):
            msg = f"a sink is 'scheme:target' or has write, alert, flush and close; {spec.__name__} is a class"
            raise InputError(msg)
        missing = [name for name in ("write", "alert", "flush", "close") if not callable(getattr(spec, name, None))]
        if missing:
            msg = f"a sink is 'scheme:target' or has write, alert, flush and close; {spec!r} has no {missing[0]}"
            raise InputError(msg)

    def extract(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
        """The matrices of a module by the first plugin that knows it."""
        from esdmon.weights import Matrix  # noqa: PLC0415 -- torch is loaded with the first model, not with a sink

        hook, registry = "esdmon_extract_matrices", self._registry
        for plugin, matrices in registry.call(hook, name=name, module=module):
            if isinstance(matrices, Sequence) and all(isinstance(matrix, Matrix) for matrix in matrices):
                if plugin in registry.ours:
                    return matrices
                return [replace(matrix, read=registry.guarded(plugin, hook, matrix.read)) for matrix in matrices]
            registry.tell_once(plugin, hook, f"returned {matrices!r}, which is no sequence of matrices")
        return None

    def materialize(self, parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What turns a parameter into an ordinary tensor, by the first plugin that knows it."""
        hook = "esdmon_materialize"
        for plugin, function in self._registry.call(hook, parameter=parameter):
            if callable(function):
                return self._registry.guarded(plugin, hook, function)
            self._registry.tell_once(plugin, hook, f"returned {function!r}, which is no function of the parameter")
        return None

    def on_alert(self, alert: Alert) -> None:
        """Tell every plugin."""
        for _ in self._registry.call("esdmon_on_alert", alert=alert):
            pass

    def requests_stop(self, alert: Alert) -> bool:
        """Whether any plugin wants the training to end; all are asked."""
        return True in [answer for _, answer in self._registry.call("esdmon_request_stop", alert=alert)]

    def _is_due(self, step: int) -> bool:
        return True in [answer for _, answer in self._registry.call("esdmon_schedule", step=step)]

    def _collect(self, kind: Kind, named: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """All that the plugins register by name, what is built in first; a name that is taken is refused."""
        hook, registry = _REGISTERS[kind], self._registry
        taken: dict[str, Any] = {}
        for plugin, items in sorted(registry.call(hook), key=lambda answer: registry.names.index(answer[0])):
            try:
                new = named(items)
            except Exception as error:  # noqa: BLE001 -- a stranger's generator, say
                registry.tell_once(plugin, hook, f"what it returned cannot be used: {describe(error)}")
                continue
            for name in taken.keys() & new.keys():
                registry.tell(plugin, hook, f"the name {name!r} is taken already")
            free = {name: item for name, item in new.items() if name not in taken}
            self._owners |= dict.fromkeys(((kind, name) for name in free), plugin)
            taken |= free
        return taken


def shown(spec: str) -> str:
    """The name of a sink in messages: an address on the net may be a secret, and is left out."""
    return f"{spec.partition(':')[0]}:…" if "://" in spec else spec


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
