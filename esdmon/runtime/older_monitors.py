"""Close the monitor of an optimizer and a model when these are watched again: a notebook cell that ran again."""

import logging
import weakref

from torch import nn
from torch.optim import Optimizer

from esdmon.runtime.monitor import Monitor
from esdmon.weights import Model
from esdmon.weights.names import unwrap

_log = logging.getLogger("esdmon")
_monitors: weakref.WeakKeyDictionary[Optimizer, list[tuple[weakref.ref[Monitor], int]]] = weakref.WeakKeyDictionary()
"""The monitors whose steps an optimizer counts, each with the id of the model that it watches."""


def remember(monitor: Monitor, optimizer: Optimizer, model: Model) -> None:
    """Note that an optimizer counts the steps of a monitor."""
    _monitors.setdefault(optimizer, []).append((weakref.ref(monitor), _identity(model)))


def close_older(optimizer: Optimizer | None, model: Model) -> None:
    """Close a monitor of the same optimizer and model, and log it; do nothing if no optimizer counts the steps."""
    if optimizer is None:
        return
    for reference, watched in _monitors.pop(optimizer, ()):
        older = reference()
        if older is None or older.closed:
            continue
        if watched != _identity(model):
            _monitors.setdefault(optimizer, []).append((reference, watched))
            continue
        _log.warning(
            "esdmon: another monitor already watched this model and optimizer. It is closed now, at step %d. "
            "To watch one model twice, leave the optimizer out of the second watch() and call its step().",
            older.steps,
        )
        older.close(is_complete=False)  # it may have read nothing yet


def _identity(model: Model) -> int:
    return id(unwrap(model)) if isinstance(model, nn.Module) else id(model)
