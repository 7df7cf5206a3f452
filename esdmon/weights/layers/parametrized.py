"""Weights that a module computes from its parameters: parametrisations, and torch's older hooks for the same.

They are read as they act, and nothing is moved: in training mode spectral_norm, for one, takes a step of its power
iteration whenever its weight is looked at.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from esdmon.weights.shards import Shard, find_shards


def as_computed(module: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """The matrices of one module, those that it computes with their own way of being read."""
    if parametrize.is_parametrized(module):
        return [_at_rest(module, matrix) for matrix in matrices]
    hooked = dict(_hooked(module))
    return [_recomputed(module, matrix, hooked) for matrix in matrices] if hooked else list(matrices)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Its parametrisations in evaluation mode."""
    parts = list(module.parametrizations.modules()) if parametrize.is_parametrized(module) else []  # type: ignore[union-attr]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _at_rest(module: nn.Module, matrix: Matrix) -> Matrix:
    read = partial(_read_at_rest, module, matrix.read)
    outline = partial(torch.empty, read().shape, device="meta")
    return replace(matrix, read=read, made_of=partial(_originals, module), outline=outline)


def _read_at_rest(module: nn.Module, read: Callable[[], Tensor]) -> Tensor:
    # One that draws at random takes nothing from the user's random state.
    devices = {parameter.device for parameter in module.parameters()} - {torch.device("cpu"), torch.device("meta")}
    kind = next((device.type for device in devices), "cuda")
    with at_rest(module), torch.no_grad(), torch.random.fork_rng(devices, device_type=kind):
        return read()


def structure(model: nn.Module) -> tuple[object, ...]:
    """Equal for as long as the weights of a model are where they were: the same parameters, computed alike.

    What a wrapper shards counts as the parameter that the optimizer holds, whatever the module shows in the meantime.
    """
    shards = find_shards(model)
    return tuple(
        (
            id(module),
            type(module),
            tuple((name, id(parameter)) for name, parameter in _unsharded(module, shards.get(id(module), {}))),
            tuple((name, id(shard.parameter)) for name, shard in sorted(shards.get(id(module), {}).items())),
            tuple(attribute for attribute, _ in _hooked(module)),
        )
        for module in model.modules()
    )


def _unsharded(module: nn.Module, shards: Mapping[str, Shard]) -> Iterator[tuple[str, Tensor]]:
    return (pair for pair in module.named_parameters(recurse=False) if pair[0] not in shards)


def _originals(module: nn.Module) -> tuple[Tensor, ...]:
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)  # noqa: S101 -- for the type checker
    return tuple(parametrizations.parameters())


def _hooked(module: nn.Module) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(attribute, its value) for each weight that a hook makes anew before `forward`; until then it is a step old."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 -- there is no other way to them
        match hook:
            case WeightNorm():
                yield hook.name, partial(hook.compute_weight, module)
            case SpectralNorm():
                yield hook.name, partial(hook.compute_weight, module, do_power_iteration=False)
            case BasePruningMethod():
                # Set by torch on each instance, and declared nowhere.
                method: Any = hook
                yield method._tensor_name, partial(method.apply_mask, module)  # noqa: SLF001


def _recomputed(module: nn.Module, matrix: Matrix, hooked: dict[str, Callable[[], Tensor]]) -> Matrix:
    attribute = matrix.read.args[-1] if isinstance(matrix.read, partial) else None
    if attribute not in hooked:
        return matrix
    behind = [weight for name, weight in module.named_parameters(recurse=False) if name.startswith(f"{attribute}_")]
    return replace(matrix, read=partial(_quietly, hooked[attribute]), made_of=lambda: tuple(behind))


def _quietly(read: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return read()
