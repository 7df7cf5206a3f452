"""Find the torch optimizer inside a wrapper, and reject optimizers whose hooks cannot count training steps."""

import itertools
from contextlib import suppress
from typing import Any

import torch
from torch.optim import Optimizer

from esdmon.errors import InputError
from esdmon.weights.torch_private import has_step_hooks

_MOST_NESTED = 16  # wrappers around each other: an object that makes up its attributes, as a mock, has no innermost one


def optimizers_in(given: Any) -> tuple[Optimizer, ...]:
    """Return the torch optimizers inside what was given, one or a list of several, and those that they hold.

    A container such as torchtitan's knows no learning rate and no momentum: the optimizers that it holds do.
    """
    if given is None:
        return ()
    found = tuple(map(_hookable, given if isinstance(given, list | tuple) else (given,)))
    if not found:
        raise InputError("optimizer is an empty list: give one, or leave it out and call monitor.step()")
    return (*found, *itertools.chain.from_iterable(map(_held, found)))


def _hookable(given: Any) -> Optimizer:
    """Return the torch optimizer inside a wrapper such as Accelerate's, whose own hooks do not work.

    Raises:
        InputError: for anything else than an optimizer of torch with hooks, or a wrapper with one as `optimizer`.
    """
    inner = unwrapped(given)
    if not has_step_hooks(inner):
        swapped = " Are model and optimizer swapped?" if isinstance(given, torch.nn.Module) else ""
        msg = (
            f"optimizer is of type {type(inner).__name__}, not a torch.optim.Optimizer with hooks, so its steps cannot "
            f"be counted.{swapped} {_way_out(inner)}"
        )
        raise InputError(msg)
    found: Optimizer = inner
    return found


def unwrapped(given: Any) -> Any:
    """Return the first torch optimizer with hooks inside wrappers that have it as `optimizer`, or the innermost."""
    *outer, innermost = _nested(given)
    return next((each for each in outer if has_step_hooks(each)), innermost)


def _nested(given: Any) -> list[Any]:
    """Return an optimizer, the one that it has as `optimizer`, and so on."""
    found = [given]
    with suppress(Exception):  # any object's attribute may raise, or be absent
        while len(found) < _MOST_NESTED and not any(found[-1].optimizer is each for each in found):
            found.append(found[-1].optimizer)
    return found


def _way_out(wrapper: object) -> str:
    """Return the argument for `watch()` that replaces a wrapper of one optimizer or several."""
    if _are_optimizers(wrapper):
        return "Give watch() a list of the optimizers in it, or leave it out and call monitor.step() after each step"
    attributes = _attributes(wrapper)
    one = next((f".{name}" for name, value in attributes.items() if has_step_hooks(value)), None)
    several = next((f".{name}" for name, value in attributes.items() if _are_optimizers(value)), None)
    if one is not None:
        return (
            f"Leave it out, or give watch() the optimizer inside it, {one}, with hook=False, and call monitor.step() "
            f"after each step. If nothing writes weights after the step of {one}, give watch() {one} alone"
        )
    if several is not None:
        return (
            f"Give watch() a list of the optimizers inside it, {several}, or leave it out and call monitor.step() "
            "after each step"
        )
    return "Leave it out and call monitor.step() after each step"


def _held(wrapper: Optimizer) -> list[Optimizer]:
    """Return the torch optimizers inside an optimizer: the wrapped one, or the members of a container."""
    return [each for value in _attributes(wrapper).values() for each in _listed(value) if has_step_hooks(each)]


def _are_optimizers(value: object) -> bool:
    is_several = isinstance(value, dict | list | tuple) and bool(value)
    return is_several and all(has_step_hooks(unwrapped(each)) for each in _listed(value))


def _listed(value: object) -> list[Any]:
    """Return the items of a list, a tuple or a dict, else a list of the value alone."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def writes_later(given: Any) -> str:
    """Return the name of the host whose optimizer steps copies of the weights, and writes the weights after its step.

    This holds for optimizers of DeepSpeed and of Megatron, and for wrappers of them; empty for any other.
    """
    return next((host for each in _nested(given) if (host := _host_of(each))), "")


def check_clock(given: Any, model: Any) -> None:
    """Check that the weights of a model are written when the hook of an optimizer is called.

    Raises:
        InputError: for optimizers that `writes_later` names, and for the optimizers inside them, which hold no weight
            of the model, and may step once for each part of it.
    """
    optimizers = given if isinstance(given, list | tuple) else (given,)
    host = next((host for each in optimizers if (host := writes_later(each))), "") or _host_of_model(model)
    if host:
        raise InputError(
            f"optimizer is one of {host}, or the one inside it: weights are written after its step, so a reading in "
            f"its hook would be of the step before. Leave it out, and call monitor.step() after {_UPDATES[host]}"
        )


_UPDATES = {
    "DeepSpeed": "each engine.step() that updates the weights: engine.was_step_applied() says so",
    "Megatron": "each optimizer.step() that updates the weights: the first of its results says so",
}
_MARKS = {"ds_id": "DeepSpeed", "main_param": "Megatron"}
"""Attribute of parameters whose optimizer has a copy of them."""


def _host_of(given: object) -> str:
    for kind in type(given).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == "deepspeed":
            return "DeepSpeed"
        if package == "megatron" and kind.__name__ == "MegatronOptimizer":
            return "Megatron"
    return ""


def _host_of_model(model: object) -> str:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    marked = (host for parameter in parameters for mark, host in _MARKS.items() if hasattr(parameter, mark))
    return _host_of(model) or next(marked, "")


def _attributes(wrapper: object) -> dict[str, Any]:
    return vars(wrapper) if hasattr(wrapper, "__dict__") else {}
