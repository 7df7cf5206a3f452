"""Find the optimizer of torch inside a wrapper, and refuse those whose hooks cannot count the steps of the training."""

from typing import Any

import torch
from torch.optim import Optimizer

from esdmon.errors import InputError
from esdmon.torch_private import has_step_hooks


def hookable(given: Any) -> Optimizer:
    """Return the torch optimizer inside a wrapper such as Accelerate's, whose own hooks do not work.

    Raises:
        InputError: for anything else than an optimizer of torch with hooks, or a wrapper with one as `optimizer`.
    """
    inner = unwrapped(given)
    if not has_step_hooks(inner):
        swapped = " Are model and optimizer swapped?" if isinstance(given, torch.nn.Module) else ""
        msg = (
            f"optimizer is a {type(inner).__name__}, not a torch.optim.Optimizer with hooks, so its steps cannot be "
            f"counted.{swapped} {_way_out(inner)}"
        )
        raise InputError(msg)
    found: Optimizer = inner
    return found


def unwrapped(given: Any) -> Any:
    """Return the first torch optimizer with hooks inside wrappers that have it as `optimizer`, or the innermost."""
    inner, seen = given, list[Any]()
    while not has_step_hooks(inner) and not any(inner is each for each in seen):
        seen.append(inner)
        try:
            inner = inner.optimizer
        except Exception:  # noqa: BLE001 -- any object's attribute may raise, or be absent
            break
    return inner


def _way_out(wrapper: object) -> str:
    """Return what to give to `watch()` in the place of a wrapper of one optimizer or several."""
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


def held_optimizers(wrapper: Optimizer) -> list[Optimizer]:
    """Return the torch optimizers that an optimizer holds: the one it wraps, or those of a container."""
    return [each for value in _attributes(wrapper).values() for each in _listed(value) if has_step_hooks(each)]


def _are_optimizers(value: object) -> bool:
    is_several = isinstance(value, dict | list | tuple) and bool(value)
    return is_several and all(has_step_hooks(unwrapped(each)) for each in _listed(value))


def _listed(value: object) -> list[Any]:
    """Return what a list, a tuple or a dict holds, else the value alone."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def is_deepspeed(given: Any) -> bool:
    """Return whether an optimizer, or one that wraps it, is of DeepSpeed: it holds copies of the weights, flattened."""
    seen = list[Any]()
    while given is not None and not any(given is each for each in seen):
        if _is_of_deepspeed(given):
            return True
        seen.append(given)
        given = getattr(given, "optimizer", None)
    return False


def check_clock(given: Any, model: Any) -> None:
    """Check that the weights of a model are written when the hook of an optimizer is called.

    Raises:
        InputError: for DeepSpeed's, which writes them when the optimizer inside it has stepped, once for each part.
    """
    optimizers = given if isinstance(given, list | tuple) else (given,)
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    is_partitioned = _is_of_deepspeed(model) or any(hasattr(parameter, "ds_id") for parameter in parameters)
    if is_partitioned or any(map(is_deepspeed, optimizers)):
        raise InputError(
            "optimizer is one of DeepSpeed, or the one inside it: weights are written after its step, so a reading in "
            "its hook would be of the step before. Leave it out, and call monitor.step() after each engine.step() that "
            "updates the weights: engine.was_step_applied() says so"
        )


def _is_of_deepspeed(given: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "deepspeed" for kind in type(given).__mro__)


def _attributes(wrapper: object) -> dict[str, Any]:
    return vars(wrapper) if hasattr(wrapper, "__dict__") else {}
