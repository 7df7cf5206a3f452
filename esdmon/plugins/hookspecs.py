"""The hooks that a plugin may implement. The same ones bring in all that is built in.

A plugin is a module or an object whose functions are marked with `@esdmon.hookimpl`; it is found by the entry-point
group `esdmon`, or given as `watch(..., plugins=[plugin])`. Hooks may gain arguments; an implementation takes those that
it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from esdmon.alerts import AlertRule
    from esdmon.records import Alert
    from esdmon.sinks import Sink
    from esdmon.spectrum import Measure
    from esdmon.weights import Matrix

    Function = TypeVar("Function", bound=Callable[..., object])

NAME = "esdmon"
hookspec = pluggy.HookspecMarker(NAME)


def hookimpl(function: Function) -> Function:
    """Mark a function of a plugin as the implementation of the hook that bears its name."""
    return pluggy.HookimplMarker(NAME)(function)


@hookspec
def esdmon_register_measures() -> Iterable[Measure]:
    """Measures to take of each spectrum. A name that is taken already is refused."""
    raise NotImplementedError


@hookspec
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """For each scheme the function that opens a sink: `"jsonl:runs/a.jsonl"` calls `sinks["jsonl"]("runs/a.jsonl")`."""
    raise NotImplementedError


@hookspec
def esdmon_register_alert_rules() -> Iterable[AlertRule]:
    """Rules that `alerts="default"` asks after each reading."""
    raise NotImplementedError


@hookspec
def esdmon_extract_matrices(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """The matrices of a module; an empty sequence to skip it, None to leave it to the next plugin.

    Plugins are asked before what is built in, the one registered last first.
    """
    raise NotImplementedError


@hookspec
def esdmon_materialize(parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
    """For a parameter that is no ordinary tensor: what turns it into one, or None to leave it to the next plugin.

    Packed numbers, shards, tensor classes of a library: the function is called with the parameter at each reading, and
    gives all of it, in floating point and in `parameter.shape`. Asked once for each parameter, when a model is watched.
    """
    raise NotImplementedError


@hookspec
def esdmon_schedule(step: int) -> bool | None:
    """Whether to read at this step, besides those of `every=`. A function of the step alone: all ranks must agree."""
    raise NotImplementedError


@hookspec
def esdmon_on_alert(alert: Alert) -> None:
    """Told of each alert that begins, grows or ends."""
    raise NotImplementedError


@hookspec
def esdmon_request_stop(alert: Alert) -> bool | None:
    """Whether the training is to end for this alert; asked at each that begins, grows or ends. One True is enough."""
    raise NotImplementedError
