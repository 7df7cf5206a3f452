"""Count the steps of an optimizer by its hooks, and warn early if they are not the steps of the training."""

import inspect
import logging
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from esdmon.isolation import Faults
from esdmon.records.text import count
from esdmon.weights import is_capturing
from esdmon.weights.torch_private import (
    drop_empty_gradient_hooks,
    has_step_hooks,
    is_in_backward,
    step_wrapper,
    version_of,
)

_log = logging.getLogger("esdmon")
FOREIGN_STEPS = 20
"""Number of steps of another optimizer with the same weights, or of changes of a weight, after which a log line reports
that the given optimizer does not train the model. Our choice."""
FIRST_CHECK = 3
"""Number of backward passes before the first check whether weights move without a counted step; the next checks are
after 6, 12, 24 passes and so on. Our choice."""
_STEP_WRAPPER = step_wrapper()
_CHANGES = 2  # number of checks with a changed weight: loading a checkpoint changes it once
_SAMPLE = 16  # elements of a weight that are compared
_IN_BACKWARD = (
    "esdmon: the optimizer steps within backward(), while other weights are still to be updated: its steps are not "
    "counted. Pass hook=False to watch() as well, and call monitor.step() after backward()."
)


@final
class Clock:
    """Call `on_step` after each step of an optimizer, or of the optimizer that it wraps if only that one steps.

    Some optimizers are stepped in parts (`first_step`, `second_step` of SAM): their own `step` is never called, but the
    `step` of the optimizer inside them is. If neither steps while weights move, this is logged once, with the remedy.

    Args:
        optimizer: with hooks, see `esdmon.runtime.optimizers.optimizers_in`.
        on_step: called after each step.
        faults: counts errors in a hook, so that they do not reach the optimizer's step.
    """

    def __init__(self, optimizer: Optimizer, on_step: Callable[[], object], faults: Faults) -> None:
        self._faults = faults
        self._optimizer = optimizer
        self._may_nest = _may_nest(type(optimizer))
        self._inner = [held for held in vars(optimizer).values() if has_step_hooks(held)]
        self._on_step = on_step
        self._parameters = {id(parameter) for parameter in _parameters(optimizer)}
        self._witness = next(iter(_parameters(optimizer)), None)
        self._version = version_of(self._witness)
        self._steps = 0
        self._foreign = 0
        self._unrelated: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._has_warned = False
        self._handle = optimizer.register_step_post_hook(_untraced(self._after))
        # torch keeps this hook for the whole process, so it must not reference the model; it is removed with this
        # object.
        for_all = register_optimizer_step_post_hook(_untraced(_weakly(self._after_any)))
        self._remove_from_all = weakref.finalize(self, for_all.remove)
        self._look_out = _LookOut(self._witness, self._weights_move, is_stepping=lambda: self._depth() > 0)

    def close(self) -> None:
        """Remove the hooks. Log a warning if weights have moved since the last counted step."""
        self._handle.remove()
        self._remove_from_all()
        self._look_out.close()
        if version_of(self._witness) - self._version >= FOREIGN_STEPS:
            self._warn(f"weights have changed {version_of(self._witness) - self._version} times since its last step")

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """Count a step. If it calls the step of a parent class, whose hooks fire too, it is counted only once."""
        self._faults.call("clock", self._steps, self._take_own, default=None, pauses=False)

    def _take_own(self) -> None:
        if (self._may_nest and self._depth() > 1) or is_capturing():
            return
        if not is_in_backward():
            self._count()
        elif not self._has_warned:
            self._has_warned = True
            _log.warning(_IN_BACKWARD)

    def _after_any(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """Count a step of the inner optimizer; of another optimizer, record whether it trains the same weights."""
        if optimizer is self._optimizer:
            return
        with self._faults.isolated("clock", self._steps, pauses=False):
            if is_in_backward() or self._depth() or is_capturing():
                return
            if any(optimizer is inner for inner in self._inner):
                self._count()
            elif not self._has_warned and self._shares_weights(optimizer):
                self._foreign += 1
                if self._foreign >= FOREIGN_STEPS:
                    name = type(optimizer).__name__
                    self._warn(f"{name}, which holds the same weights, has taken {self._foreign} steps since its last")

    def _shares_weights(self, optimizer: Optimizer) -> bool:
        if optimizer not in self._unrelated:
            with suppress(Exception):  # groups may have any form
                if any(id(parameter) in self._parameters for parameter in _parameters(optimizer)):
                    return True
            self._unrelated.add(optimizer)
        return False

    def _count(self) -> None:
        self._steps += 1
        self._foreign = 0
        self._look_out.close()
        self._on_step()
        self._version = version_of(self._witness)

    def _depth(self) -> int:
        """Return how many calls of the optimizer's step are on the stack.

        The stack is inspected, since a counter would be wrong after an exception during a step.
        """
        frame, depth = inspect.currentframe(), 0
        while frame is not None:
            depth += frame.f_code is _STEP_WRAPPER and frame.f_locals.get("self") is self._optimizer
            frame = frame.f_back
        return depth

    def _weights_move(self) -> None:
        self._warn("weights change, and its step() was not called")

    def _warn(self, what: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "esdmon: the optimizer that watch() was given (%s) does not train: %s (%s counted). Nothing is read "
            "until it steps. Give watch() the optimizer that trains, or none, and call monitor.step() after each step.",
            type(self._optimizer).__name__,
            what,
            count(self._steps, "step"),
        )


@final
class _LookOut:
    """Compares a few elements of a weight at backward passes until the first step is counted.

    If `step` is patched on the instance, or is a function of the user, no hook of torch is called; hooks of gradients
    are.

    Args:
        weight: a trained weight.
        moved: called once, when two checks have found a changed weight.
        is_stepping: returns whether the optimizer's step is running, as in a closure; backward passes in it are not
            counted.
    """

    def __init__(self, weight: Tensor | None, moved: Callable[[], None], *, is_stepping: Callable[[], bool]) -> None:
        self._moved = moved
        self._is_stepping = is_stepping
        self._weight = weight
        self._changes = 0
        self._has_moved = False
        self._passes = 0
        self._before: list[float] = []
        self._handle: RemovableHandle | None = None
        if weight is not None and weight.requires_grad and weight.is_leaf and not hasattr(weight, "placements"):
            with suppress(Exception):  # a tensor of a kind without hooks is not checked
                hook = _untraced(_weakly(self._after_backward))
                self._handle = weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the hook."""
        handle, self._handle = self._handle, None
        if handle is not None and self._weight is not None:
            handle.remove()
            drop_empty_gradient_hooks(self._weight)

    def _after_backward(self, weight: Tensor) -> None:
        if is_capturing() or self._has_moved or self._is_stepping():
            return
        self._passes += 1
        if self._passes == 1:
            self._before = _sample(weight)
            return
        times, rest = divmod(self._passes, FIRST_CHECK)
        if rest or times & (times - 1):  # checks are at passes 3, 6, 12, 24, …
            return
        now = _sample(weight)
        self._changes += now != self._before
        self._before = now
        if self._changes == _CHANGES:
            self._has_moved = True  # torch is iterating over the hooks: this one is removed later
            self._moved()


def _untraced(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that torch.compile does not trace; it would convert the numpy code of a hook to torch."""
    untraced: Callable[..., None] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return untraced


def _may_nest(kind: type) -> bool:
    """Return whether the `step` of a class may call a parent's: it and a parent other than `Optimizer` define one.

    The search for such calls on the stack takes a large part of the time of a hook.
    """
    steps = [inspect.unwrap(vars(each)["step"]) for each in kind.__mro__ if "step" in vars(each)]
    return any(step not in (steps[0], Optimizer.step) for step in steps)  # torch copies a step to child classes


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method as long as its object exists; it does not keep the object."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*arguments)

    return call


def _sample(weight: Tensor) -> list[float]:
    with suppress(Exception):
        return [float(x) for x in weight.detach().reshape(-1)[:_SAMPLE].tolist()]
    return []


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
