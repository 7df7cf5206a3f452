"""Specify the hooks that a plugin may implement; the built-in parts are registered by the same hooks.

A plugin is a module or an object with functions marked `@esdmon.hookimpl`. It is installed in the entry-point group
`esdmon`, or given as `watch(..., plugins=[plugin])`. An implementation names only the arguments that it needs, so that
a hook can gain arguments later.

When a hook is called, and what happens if it raises:

- `esdmon_register_*` is called when plugins are loaded. If it raises, a warning is logged, and the hook has no effect.
- `esdmon_extract_matrices` and `esdmon_materialize` are called for each module or parameter when a model is watched. If
  one raises, one warning is logged, and the next plugin is called.
- `esdmon_on_alert` and `esdmon_request_stop` are called for each alert. Errors are counted in `monitor.errors`. After
  three errors in a row the hook is paused for ten due steps, then tried again.
- `esdmon_schedule` is called at each step. Errors are counted in `monitor.errors`; the hook is never paused.
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
    """Mark a function of a plugin as an implementation of the hook with the same name."""
    return pluggy.HookimplMarker(NAME)(function)


@hookspec
def esdmon_register_measures() -> Iterable[Measure]:
    """Return measures to compute from each spectrum; a measure with an existing name is refused."""
    raise NotImplementedError


@hookspec
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Return a factory for each sink scheme: `"jsonl:runs/a.jsonl"` calls `sinks["jsonl"]("runs/a.jsonl")`."""
    raise NotImplementedError


@hookspec
def esdmon_register_alert_rules() -> Iterable[AlertRule]:
    """Return rules for `alerts="default"`, each evaluated after every reading."""
    raise NotImplementedError


@hookspec
def esdmon_extract_matrices(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the matrices of a module. An empty sequence skips the module, None leaves it to the next plugin.

    Plugins are called in reverse order of registration, before the built-in implementation.
    """
    raise NotImplementedError


@hookspec
def esdmon_materialize(parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a function that converts a packed or sharded parameter to an ordinary tensor; None for other parameters.

    The hook is called once for each parameter, when a model is watched. The returned function is called with the
    parameter at each reading. It must return the whole weight, in floating point and with the shape `parameter.shape`.
    """
    raise NotImplementedError


@hookspec
def esdmon_schedule(step: int) -> bool | None:
    """Return True to read at this step too, besides the steps of `every=`.

    The result may depend on `step` only, since it must be the same on all ranks.
    """
    raise NotImplementedError


@hookspec
def esdmon_on_alert(alert: Alert) -> None:
    """Handle an alert that begins, grows or ends."""
    raise NotImplementedError


@hookspec
def esdmon_request_stop(alert: Alert) -> bool | None:
    """Return True to stop the training for an alert that begins, grows or ends. True from one plugin stops it."""
    raise NotImplementedError
