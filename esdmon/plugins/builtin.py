"""Register the built-in measures, sinks, rules and layers, by the hooks that any plugin uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esdmon import alerts, sinks
from esdmon.errors import InputError
from esdmon.plugins.hookspecs import hookimpl
from esdmon.spectrum import measures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from esdmon.weights import Matrix


@hookimpl
def esdmon_register_measures() -> Iterable[measures.Measure]:
    """Return all of `esdmon.spectrum.measures`."""
    return measures.BUILT_IN_MEASURES


@hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], sinks.Sink]]:
    """Return the sinks `console`, `jsonl:PATH`, `csv:PATH`, `prometheus:TARGET` and `webhook:ADDRESS`."""
    return {
        "console": _console,
        "csv": _of_a_path("csv", sinks.CsvSink),
        "jsonl": _of_a_path("jsonl", sinks.JsonlSink),
        "prometheus": sinks.PrometheusSink,
        "webhook": sinks.WebhookSink,
    }


@hookimpl
def esdmon_register_alert_rules() -> Iterable[alerts.AlertRule]:
    """Return all of `esdmon.alerts.rules.builtin`."""
    return alerts.BUILT_IN_RULES


@hookimpl
def esdmon_extract_matrices(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the matrices of a layer that esdmon knows; None for other modules."""
    from esdmon.weights import extract  # noqa: PLC0415 -- torch is loaded with the first model, not with a sink

    return extract(name, module)


@hookimpl
def esdmon_materialize(parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return the unpacker of a weight quantised by torch, torchao, quanto or bitsandbytes; None for others."""
    from esdmon.weights import unpacker  # noqa: PLC0415 -- torch is loaded with the first model, not with a sink

    return unpacker(parameter)


def _console(target: str) -> sinks.Sink:
    if target:
        raise InputError(f"console takes no target, got 'console:{target}'")
    return sinks.ConsoleSink()


def _of_a_path(scheme: str, sink: Callable[[str], sinks.Sink]) -> Callable[[str], sinks.Sink]:
    """Return the function that opens `scheme:PATH`."""

    def opened(target: str) -> sinks.Sink:
        if not target:
            raise InputError(f"{scheme} needs a path: '{scheme}:runs/a/esdmon.{scheme}', for example")
        return sink(target)

    return opened
