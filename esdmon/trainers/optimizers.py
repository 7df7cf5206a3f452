"""The parameters that a trainer's optimizers hold, whatever their class."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from esdmon.runtime.clock import unwrapped
from esdmon.torch_private import has_step_hooks


def readable(optimizers: Any) -> list[Optimizer] | None:
    """Return torch optimizers with the parameters of a trainer's optimizers, which the trainer steps itself.

    Wrappers are unwrapped. An optimizer of another kind needs `param_groups` only.

    Args:
        optimizers: one or several, of any kind.

    Returns:
        None if there is none, or if one has no readable `param_groups`: its weights are unknown then.
    """
    given = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    found = [_readable(optimizer) for optimizer in given]
    known = [optimizer for optimizer in found if optimizer is not None]
    return known if known and len(known) == len(found) else None


class _StandIn(Optimizer):
    """Holds the parameters of an optimizer of another kind. Its own class, since torch wraps each class's step."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing: only its parameters are used."""


def _readable(optimizer: Any) -> Optimizer | None:
    inner = unwrapped(optimizer)
    if has_step_hooks(inner):
        return inner
    try:
        groups = inner.param_groups
        stand_in = _StandIn([parameter for group in groups for parameter in group["params"]], {})
    except Exception:  # noqa: BLE001 -- any object may raise anything
        return None
    stand_in.param_groups = groups  # the list itself, so that groups that are added later are seen
    return stand_in
