"""Find the weights that are sharded over the ranks of a job. They are reported, and not read yet.

A module shows them in many shapes: DTensors, 1-D slices (FSDP1), empty placeholders (ZeRO-3), and between a forward and
its backward, or for as long as the user keeps them gathered, as whole parameters that are a step old. So what a module
shows cannot be trusted: the wrappers say which weights they manage, and which parameter the optimizer holds instead.
All are recognised by type names and attributes, without importing the libraries that made them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from esdmon import torch_private
from esdmon.torch_private import ManagedParameter

SHARDED = "sharded over ranks: not read yet"


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight of which this rank holds a part."""

    parameter: Tensor
    """The tensor that the optimizer holds; several weights have the same one where they are flattened together."""
    shape: torch.Size
    """Shape of the whole weight, as far as known."""
    reason: str
    """Why it is not read."""


Shards = dict[int, dict[str, Shard]]
"""id of a module -> attribute -> shard."""


def find_shards(model: nn.Module) -> Shards:
    """Return the shards of a model by module and attribute; empty for a model that is not sharded."""
    found: Shards = {}
    by_parameter: dict[int, Shard] = {}
    managed: list[tuple[nn.Module, str, Shard]] = []
    for module in model.modules():
        for name, parameter in torch_private.parameters_of(module).items():
            if parameter is None:
                continue
            shard = by_parameter.get(id(parameter)) or shard_of(parameter)
            if shard is not None:
                by_parameter[id(parameter)] = shard
                found.setdefault(id(module), {})[name] = shard
        managed += _managed_by(module)
    for module, name, shard in managed:
        found.setdefault(id(module), {})[name] = shard
    return found


def shard_of(parameter: Any) -> Shard | None:
    """Return the shard that a DTensor or a parameter of ZeRO-3 or Megatron is; None for an ordinary parameter."""
    if hasattr(parameter, "placements"):
        return Shard(parameter, parameter.shape, SHARDED)
    if hasattr(parameter, "ds_id"):
        part = getattr(parameter, "ds_tensor", None)
        shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
        return Shard(parameter, shape, _reason(None if part is None else part.numel(), "ZeRO-3"))
    if getattr(parameter, "tensor_model_parallel", False) is True and _is_tensor_parallel():
        return Shard(parameter, parameter.shape, _reason(parameter.numel(), "tensor parallel"))
    return None


def _reason(n_local: int | None, kind: str) -> str:
    if n_local is None:
        return f"sharded over ranks ({kind}): not read yet"
    return f"a shard of {n_local} elements ({kind}): not read yet"


def _is_tensor_parallel() -> bool:
    """Return whether Megatron splits weights; it marks them also where one rank holds all of them."""
    with suppress(Exception):
        return bool(sys.modules["megatron.core.parallel_state"].get_tensor_model_parallel_world_size() > 1)
    return True


def _managed_by(module: nn.Module) -> list[tuple[nn.Module, str, Shard]]:
    kind: Any = type(module)
    find = _manager(kind)
    if find is None:
        return []
    try:
        return list(find(module))
    except Exception:  # noqa: BLE001 -- another version of torch: any weight below the wrapper may be sharded
        return list(_all_below(module))


@lru_cache(maxsize=1024)
def _manager(kind: type) -> Callable[[nn.Module], Iterator[tuple[nn.Module, str, Shard]]] | None:
    names = {each.__name__ for each in kind.__mro__}
    if "FSDPModule" in names:
        return _managed_by_fsdp2
    return _managed_by_fsdp1 if "FullyShardedDataParallel" in names else None


def _managed_by_fsdp2(module: nn.Module) -> Iterator[tuple[nn.Module, str, Shard]]:
    for managed in torch_private.fsdp2_parameters(module):
        yield from _for_each_owner(managed, SHARDED)


def _managed_by_fsdp1(module: nn.Module) -> Iterator[tuple[nn.Module, str, Shard]]:
    for managed in torch_private.fsdp1_parameters(module):
        yield from _for_each_owner(managed, _reason(managed.n_local, "FSDP1"))


def _for_each_owner(managed: ManagedParameter, reason: str) -> Iterator[tuple[nn.Module, str, Shard]]:
    shard = Shard(managed.parameter, managed.shape, reason)
    for owner, attribute in managed.owners:
        yield owner, attribute, shard


def _all_below(module: nn.Module) -> Iterator[tuple[nn.Module, str, Shard]]:
    for each in module.modules():
        for name, parameter in torch_private.parameters_of(each).items():
            if parameter is not None:
                yield each, name, Shard(parameter, parameter.shape, SHARDED)


class Outline:
    """A copy of a model in which each shard is a tensor on the meta device of the whole weight's shape.

    Extractors find there what they would find in the whole model: names, layouts, heads. Modules without shards, in
    themselves or below, are the model's own; the others are stand-ins of the same type. The model is not changed.

    Args:
        model: the model.
        shards: its shards, from `find_shards`.
    """

    def __init__(self, model: nn.Module, shards: Mapping[int, Mapping[str, Shard]]) -> None:
        self._shards = shards
        self._copies: dict[int, nn.Module] = {}
        self._weights: dict[int, tuple[nn.Parameter, Shard]] = {}  # by id of the shard
        self.model = self._copy(model) if shards else model
        self._by_weight = {id(weight): shard for weight, shard in self._weights.values()}

    def shards_in(self, weights: tuple[Tensor, ...]) -> list[Shard]:
        """Return the shards that these tensors of the outline represent."""
        found = (self._by_weight.get(id(weight)) for weight in weights)
        return [shard for shard in found if shard is not None]

    def original(self, weight: Tensor) -> Tensor:
        """Return the model's own tensor for one of the outline: the one that the optimizer holds."""
        shard = self._by_weight.get(id(weight))
        return weight if shard is None else shard.parameter

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        own = self._shards.get(id(module), {})
        children = torch_private.children_of(module)
        copies = {name: child and self._copy(child) for name, child in children.items()}
        if not own and all(copies[name] is child for name, child in children.items()):
            self._copies[id(module)] = module
            return module
        copy: nn.Module = object.__new__(type(module))
        vars(copy).update({name: value for name, value in vars(module).items() if name not in own})
        stand_ins = {name: self._stand_in(shard) for name, shard in own.items()}
        parameters = dict(torch_private.parameters_of(module)) | stand_ins
        vars(copy).update(_parameters=parameters, _modules=copies)
        self._copies[id(module)] = copy
        return copy

    def _stand_in(self, shard: Shard) -> nn.Parameter:
        if id(shard) not in self._weights:
            parameter = shard.parameter
            can_require_grad = parameter.is_floating_point() or parameter.is_complex()
            weight = torch.empty(shard.shape, dtype=parameter.dtype, device="meta")
            stand_in = nn.Parameter(weight, requires_grad=can_require_grad and parameter.requires_grad)
            self._weights[id(shard)] = stand_in, shard
        return self._weights[id(shard)][0]


def parameters_in_optimizer(module: nn.Module, shards: Mapping[int, Mapping[str, Shard]]) -> dict[str, Tensor]:
    """Return a module's own parameters by name, in the form that the optimizer holds where they are sharded."""
    own = shards.get(id(module), {})
    shown = dict(module.named_parameters(recurse=False))
    return {name: own[name].parameter if name in own else parameter for name, parameter in shown.items()}
