"""Extract weights that a module computes, by parametrisations or by torch's older hooks for the same purpose.

The weights are read with the values that `forward` will use, without changing any state. This needs care: in training
mode spectral_norm, for example, takes a step of its power iteration whenever its weight is accessed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from esdmon.weights.matrix import Matrix
from esdmon.weights.shards import sharded_parameters
from esdmon.weights.torch_private import forward_pre_hooks, parameters_of, pruned_attribute


def with_computed_weights(module: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices of one module; computed weights are read without changing its state."""
    if parametrize.is_parametrized(module):
        return [_of_parametrization(module, matrix) for matrix in matrices]
    hooked = dict(_hooked_weights(module))
    return [_of_hook(module, matrix, hooked) for matrix in matrices] if hooked else list(matrices)


@contextmanager
def parametrizations_in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put the parametrisations of a module into evaluation mode, and restore their modes afterwards."""
    parts = list(module.parametrizations.modules()) if parametrize.is_parametrized(module) else []  # type: ignore[union-attr]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def structure(model: nn.Module) -> tuple[object, ...]:
    """Return a value that changes if the parameters of a model are replaced, or its weights are computed differently.

    A sharded weight counts as the parameter that the optimizer holds, whatever the module shows.
    """
    sharded = sharded_parameters(model)
    return tuple(
        (
            id(module),
            type(module),
            *sorted((_ids(module) | sharded.get(id(module), {})).items()),
            *(attribute for attribute, _ in _hooked_weights(module)),
        )
        for module in model.modules()
    )


def _ids(module: nn.Module) -> dict[str, int]:
    return {name: id(parameter) for name, parameter in parameters_of(module).items() if parameter is not None}


def _of_parametrization(module: nn.Module, matrix: Matrix) -> Matrix:
    """Return a matrix whose reading changes no state; a matrix of an ordinary parameter is returned unchanged."""
    parametrized: Any = module.parametrizations
    attribute = _attribute_read(matrix, module)
    if attribute and attribute not in parametrized:
        return matrix
    read = partial(_read_in_eval_mode, module, matrix.read)
    outline = partial(torch.empty, read().shape, device="meta")
    behind = parametrized[attribute] if attribute else parametrized
    return replace(matrix, read=read, made_of=partial(_originals, behind), outline=outline)


def _attribute_read(matrix: Matrix, module: nn.Module) -> str:
    """Return the attribute of a module that a matrix reads; empty if its handle does not show it."""
    match matrix.read:
        case partial(func=function, args=(owner, attribute)) if function is getattr and owner is module:
            return str(attribute)
    return ""


def _read_in_eval_mode(module: nn.Module, read: Callable[[], Tensor]) -> Tensor:
    # A parametrisation that draws random numbers must not change the user's random state.
    devices = {parameter.device for parameter in module.parameters()} - {torch.device("cpu"), torch.device("meta")}
    kind = next((device.type for device in devices), "cuda")
    with (
        parametrizations_in_eval_mode(module),
        torch.no_grad(),
        torch.random.fork_rng(devices, device_type=kind),
    ):
        return read()


def _originals(parametrizations: nn.Module) -> tuple[Tensor, ...]:
    return tuple(parametrizations.parameters())


def _hooked_weights(module: nn.Module) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Iterate over (attribute, function that computes it) for weights that a hook sets before each `forward`.

    Until the next `forward` the attribute still has the value of the last step.
    """
    for hook in forward_pre_hooks(module):
        match hook:
            case WeightNorm():
                yield hook.name, partial(hook.compute_weight, module)
            case SpectralNorm():
                yield hook.name, partial(hook.compute_weight, module, do_power_iteration=False)
            case BasePruningMethod():
                yield pruned_attribute(hook), partial(hook.apply_mask, module)


def _of_hook(module: nn.Module, matrix: Matrix, hooked: Mapping[str, Callable[[], Tensor]]) -> Matrix:
    attribute = _attribute_of(matrix, module, hooked)
    if attribute is None:
        return matrix
    prefix = f"{attribute}_"  # of weight_g and weight_v, or of weight_orig
    behind = tuple(weight for name, weight in module.named_parameters(recurse=False) if name.startswith(prefix))
    return replace(matrix, read=partial(_read_without_grad, hooked[attribute]), made_of=lambda: behind)


def _attribute_of(matrix: Matrix, module: nn.Module, attributes: Iterable[str]) -> str | None:
    """Return which of some attributes holds the tensor that a matrix reads; None for none of them.

    It is recognised by identity, so that this works for the handles of all extractors.
    """
    weight = None
    with suppress(Exception):  # reported for the matrix
        weight = matrix.read()
    if weight is None:
        return None
    return next((attribute for attribute in attributes if getattr(module, attribute, None) is weight), None)


def _read_without_grad(read: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return read()
