"""Find the parameters that a host's optimizers hold, for any kind of optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from esdmon.runtime.optimizers import unwrapped, writes_later
from esdmon.weights.torch_private import has_step_hooks


def readable(optimizers: Any) -> list[Optimizer] | None:
    """Return torch optimizers with the parameter groups of a host's optimizers; only the host steps them.

    Args:
        optimizers: one or a list of them. Wrappers are unwrapped; one that is not a torch optimizer needs
            `param_groups` only, and gets a stand-in.

    Returns:
        None if there is no optimizer, or if the parameters of one of them are unknown, so that it is not known which
        weights are in an optimizer.
    """
    given = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    found = [_readable(optimizer) for optimizer in given]
    known = [optimizer for optimizer in found if optimizer is not None]
    return known if known and len(known) == len(found) else None


class _StandIn(Optimizer):
    """The parameter groups of an optimizer of another kind. A separate class, as torch wraps `step` per class."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing: only the parameter groups are used."""


def _readable(optimizer: Any) -> Optimizer | None:
    if writes_later(optimizer):
        return None
    inner = unwrapped(optimizer)
    if has_step_hooks(inner):
        return inner
    try:
        groups = inner.param_groups
        stand_in = _StandIn([parameter for group in groups for parameter in group["params"]], {})
    except Exception:  # noqa: BLE001 -- an unknown class can raise anything
        return None
    stand_in.param_groups = groups  # the list itself, so that groups that are added later are included
    return stand_in
