"""`Plugins`: the measures, rules, sinks and hooks of all plugins, as a monitor uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

from esdmon.alerts import AlertRule
from esdmon.errors import InputError, nearest
from esdmon.isolation import Faults, describe
from esdmon.plugins.registry import BUILT_IN_PLUGIN, Listed, Registry
from esdmon.records import Alert, LayerReport
from esdmon.schedule import Schedule
from esdmon.sinks import Sink
from esdmon.sinks.protocol import missing_method
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
    """Holds the measures, rules and sinks of all plugins by name, and calls the hooks of a run.

    Args:
        extra: plugins to use besides those that are installed.

    Raises:
        InputError: if `extra` is not a list, or holds names or numbers.
    """

    def __init__(self, extra: Iterable[object] = ()) -> None:
        if isinstance(extra, str) or not isinstance(extra, Iterable):
            raise InputError(f"plugins= must be a list of modules or objects with hooks; got {extra!r}")
        extra = tuple(extra)
        for plugin in extra:
            if plugin is None or isinstance(plugin, str | int | float):
                raise InputError(
                    f"plugins= must hold modules or objects with hooks; got {plugin!r}. An installed plugin need not "
                    "be listed."
                )
        self._registry = Registry(extra)
        self._is_in_run = False
        self._owners: dict[tuple[str, str], str] = {}
        self._sinks: dict[str, Callable[[str], Sink]] = self._collect("sink", _sinks)
        self.measures: dict[str, Measure] = self._collect("measure", _measures)
        self.rules: dict[str, AlertRule] = self._collect("rule", partial(_named, AlertRule))
        self.schedule: Schedule | None = self._is_due if self._registry.has("esdmon_schedule") else None
        """Additional due steps, by `esdmon_schedule`; None if no plugin implements it."""
        self.may_stop = self._registry.has("esdmon_request_stop")
        """Whether any plugin may request a stop."""

    @property
    def listed(self) -> tuple[Listed, ...]:
        """Plugins that were found, including those that are not used."""
        return self._registry.listed

    @property
    def schemes(self) -> frozenset[str]:
        """Schemes of the sinks, as `jsonl`."""
        return frozenset(self._sinks)

    def label(self, kind: Kind, name: str) -> str:
        """Return the name of a measure, rule or sink in messages: `measure alpha`, with its plugin unless built in."""
        return f"{kind} {name}{self.origin(kind, name)}"

    def origin(self, kind: Kind, name: str) -> str:
        """Return ` (plugin 'egg', esdmon_register_measures)`; an empty text for a part of esdmon."""
        if not self.is_foreign(kind, name):
            return ""
        return f" (plugin {self._owners[kind, name]!r}, {_REGISTERS[kind]})"

    def is_foreign(self, kind: Kind, name: str) -> bool:
        """Return whether a part comes from a plugin that is not part of esdmon."""
        return self._owners.get((kind, name), BUILT_IN_PLUGIN) not in self._registry.ours

    def open_sink(self, spec: str | Sink) -> Sink:
        """Open `"scheme:target"`; return an object with a sink's methods unchanged.

        Raises:
            InputError: for an unknown scheme, for an object without a sink's methods, for an invalid target, and where
                the function of a plugin fails or returns something else.
        """
        self.check_sink(spec)
        if not isinstance(spec, str):
            return spec
        scheme, _, target = spec.partition(":")
        if not self.is_foreign("sink", scheme):
            return self._sinks[scheme](target)
        who = f"the sink {shown(spec)}{self.origin('sink', scheme)}"
        try:
            sink = self._sinks[scheme](target)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{who} cannot be opened: {describe(error)}") from error
        if (missing := _missing(sink)) is not None:
            raise InputError(f"{who} cannot be opened: a sink has write, alert, flush and close; {missing}")
        return sink

    def check_sink(self, spec: str | Sink) -> None:
        """Validate a sink without opening it.

        Raises:
            InputError: for an unknown scheme, or an object without a sink's methods.
        """
        if isinstance(spec, str):
            scheme = spec.partition(":")[0]
            if scheme not in self._sinks:
                known = sorted(self._sinks)
                raise InputError(
                    f"unknown sink scheme {scheme!r} in {shown(spec)!r}. Available: {', '.join(known)}."
                    f"{_sink_hint(spec, known)}"
                )
            return
        if (missing := _missing(spec)) is not None:
            raise InputError(
                f"a sink is 'scheme:target' or has write, alert, flush and close; {missing}. Pass your own "
                "run or writer in a sink: esdmon_wandb.WandbSink(run), esdmon_tensorboard.TensorBoardSink(writer), "
                "esdmon.sinks.ScalarLoggerSink(log) for any other"
            )

    def extract(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
        """Return the matrices of a module from the first plugin that knows it; None if none does."""
        from esdmon.weights import Matrix  # noqa: PLC0415 -- torch is loaded with the first model, not with a sink

        hook, registry = "esdmon_extract_matrices", self._registry
        for plugin, matrices in registry.call(hook, name=name, module=module):
            if isinstance(matrices, Sequence) and all(isinstance(matrix, Matrix) for matrix in matrices):
                if plugin in registry.ours:
                    return matrices
                return [replace(matrix, read=registry.guarded(plugin, hook, matrix.read)) for matrix in matrices]
            registry.warn_once(
                plugin, hook, f"returned {' '.join(repr(matrices).split()):.60}, which is not a sequence of matrices"
            )
        return None

    def materialize(self, parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Return the function that converts a parameter to an ordinary tensor, from the first plugin that knows it."""
        hook = "esdmon_materialize"
        for plugin, function in self._registry.call(hook, parameter=parameter):
            if callable(function):
                return self._registry.guarded(plugin, hook, function)
            self._registry.warn_once(plugin, hook, f"returned {function!r}, which is not a function of the parameter")
        return None

    def isolate_with(self, faults: Faults) -> None:
        """Count failures of the hooks of a run, and pause the hooks that keep failing, by the faults of a monitor."""
        self._registry.faults = faults
        self._is_in_run = True

    def on_alert(self, alert: Alert) -> None:
        """Pass an alert to every plugin."""
        for _ in self._registry.call_at(alert.step, "esdmon_on_alert", alert=alert):
            pass

    def requests_stop(self, alert: Alert) -> bool:
        """Return whether any plugin requests a stop; all of them are called."""
        return True in list(self._registry.call_at(alert.step, "esdmon_request_stop", alert=alert))

    def _is_due(self, step: int) -> bool:
        if not self._is_in_run:  # options that are validated call a schedule once, which is not a step
            return False
        # Not paused: a pause is counted in due steps, of which there may be none without this hook.
        return True in list(self._registry.call_at(step, "esdmon_schedule", pauses=False, step=step))

    def _collect(self, kind: Kind, named: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the plugins register, by name, built-in first; a name that exists already is refused."""
        hook, registry = _REGISTERS[kind], self._registry
        taken: dict[str, Any] = {}
        for plugin, items in sorted(registry.call(hook), key=lambda answer: registry.names.index(answer[0])):
            try:
                new = named(items)
            except Exception as error:  # noqa: BLE001 -- a plugin's generator may raise anything
                registry.warn_once(plugin, hook, f"what it returned cannot be used: {describe(error)}")
                continue
            for name in taken.keys() & new.keys():
                registry.warn(plugin, hook, f"the name {name!r} is taken already")
            free = {name: item for name, item in new.items() if name not in taken}
            self._owners |= dict.fromkeys(((kind, name) for name in free), plugin)
            taken |= free
        return taken


def _missing(sink: object) -> str | None:
    """Return what keeps an object from being a sink; None for a sink."""
    if isinstance(sink, type):
        return f"{sink.__name__} is a class"
    name = missing_method(sink)
    return f"{sink!r} has no {name}" if name else None


def shown(spec: str | Sink) -> str:
    """Return the name of a sink for messages: its class, or the text without a URL, which may be a secret."""
    if not isinstance(spec, str):
        return type(spec).__name__
    return f"{spec.partition(':')[0]}:…" if "://" in spec else spec


def _sink_hint(spec: str, known: Sequence[str]) -> str:
    """Return what may have been meant by a sink of an unknown scheme: several in one text, a path or an address."""
    scheme, has_scheme, _ = spec.partition(":")
    if scheme in ("http", "https"):
        return f" An address that alerts are posted to is given as 'webhook:{scheme}://…'."
    several = [part.strip() for part in spec.split(",")]
    if len(several) > 1 and all(part.partition(":")[0] in known for part in several):
        return f" Several sinks are a list: {several}."
    suffix = PurePath(spec).suffix[1:]
    if not has_scheme and suffix in known:
        return f" Did you mean '{suffix}:{spec}'?"
    if not has_scheme and "/" in spec:
        return f" Did you mean 'tensorboard:{spec}' or 'jsonl:{spec}/esdmon.jsonl'?"
    return nearest(scheme, known)


def _measures(items: Iterable[Any]) -> dict[str, Measure]:
    # A measure is a field of a layer's JSON record, beside these.
    fields = {*LayerReport("", "ok", 0).to_record(), "schema", "kind"}
    measures = _named(Measure, items)
    for name in measures:
        if name in fields or name.endswith("_null"):
            raise ValueError(f"the measure {name!r} has the name of a record field. Choose another name.")
    return measures


def _sinks(items: Mapping[str, Any]) -> dict[str, Any]:
    for scheme, factory in items.items():
        if not callable(factory):
            raise TypeError(f"sink {scheme!r}: {factory!r} is not callable")
    return dict(items)


def _named(kind: type[Item], items: Iterable[Any]) -> dict[str, Item]:
    named: dict[str, Item] = {}
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{item!r} is not a {kind.__name__}")
        if item.name in named:
            raise ValueError(f"the name {item.name!r} is used twice")
        named[item.name] = item
    return named
