"""Weights that are spread over the ranks of a job: found, kept apart, and not read yet.

A module shows them in many shapes: DTensors, 1-D slices (FSDP1), empty placeholders (ZeRO-3), and between a forward and
its backward, or for as long as the user keeps them gathered, as whole parameters that are a step old. So what a module
shows is not believed: the wrappers say which weights they manage, and which parameter the optimizer holds instead. All
are known by type names and attributes, without importing what made them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

SHARDED = "sharded over ranks: not read yet"


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight of a module, of which this rank holds a part."""

    parameter: Tensor
    """What the optimizer holds; of several weights the same, where they are flattened together."""
    shape: torch.Size
    """Of the whole weight, as far as it is known."""
    reason: str


Shards = dict[int, dict[str, Shard]]
"""id of a module -> attribute -> shard."""


def find_shards(model: nn.Module) -> Shards:
    """Return the shards of a model by module and attribute; empty for a model that is whole."""
    found: Shards = {}
    alone: dict[int, Shard] = {}
    managed: list[tuple[nn.Module, str, Shard]] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001 -- named_parameters() asks the module's own code
            if parameter is None or (shard := alone.get(id(parameter)) or shard_of(parameter)) is None:
                continue
            alone[id(parameter)] = shard
            found.setdefault(id(module), {})[name] = shard
        managed += _managed(module)
    for module, name, shard in managed:
        found.setdefault(id(module), {})[name] = shard
    return found


def shard_of(parameter: Any) -> Shard | None:
    """Return what a parameter says of itself: a DTensor, one of ZeRO-3, or a tensor-parallel one of Megatron."""
    if hasattr(parameter, "placements"):
        return Shard(parameter, parameter.shape, SHARDED)
    if hasattr(parameter, "ds_id"):
        part = getattr(parameter, "ds_tensor", None)
        shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
        return Shard(parameter, shape, _reason(None if part is None else part.numel(), "ZeRO-3"))
    if getattr(parameter, "tensor_model_parallel", False) is True and _is_split():
        return Shard(parameter, parameter.shape, _reason(parameter.numel(), "tensor parallel"))
    return None


def _reason(count: int | None, kind: str) -> str:
    return (
        f"sharded over ranks ({kind}): not read yet"
        if count is None
        else f"a shard of {count} elements ({kind}): not read yet"
    )


def _is_split() -> bool:
    """Megatron marks its weights also where one rank holds all of them."""
    with suppress(Exception):
        return bool(sys.modules["megatron.core.parallel_state"].get_tensor_model_parallel_world_size() > 1)
    return True


def _managed(module: nn.Module) -> list[tuple[nn.Module, str, Shard]]:
    kind: Any = type(module)
    find = _manager(kind)
    if find is None:
        return []
    try:
        return list(find(module))
    except Exception:  # noqa: BLE001 -- another version: what it manages is not known, so all below it may be
        return list(_all_below(module))


@lru_cache(maxsize=1024)
def _manager(kind: type) -> Callable[[nn.Module], Iterator[tuple[nn.Module, str, Shard]]] | None:
    names = {each.__name__ for each in kind.__mro__}
    return _of_fsdp2 if "FSDPModule" in names else _of_fsdp1 if "FullyShardedDataParallel" in names else None


def _of_fsdp2(module: Any) -> Iterator[tuple[nn.Module, str, Shard]]:
    state = module._get_fsdp_state()  # noqa: SLF001 -- there is no public way to what it manages
    groups = getattr(state, "_fsdp_param_groups", None)
    for group in [state._fsdp_param_group] if groups is None else groups:  # noqa: SLF001
        for each in () if group is None else group.fsdp_params:
            info = each._module_info  # noqa: SLF001
            shard = Shard(each.sharded_param, each.sharded_param.shape, SHARDED)
            yield info.module, info.param_name, shard
            for owner, name in zip(info.shared_modules, info.shared_param_names, strict=True):
                yield owner, name, shard


def _of_fsdp1(module: Any) -> Iterator[tuple[nn.Module, str, Shard]]:
    handle = module._handle  # noqa: SLF001 -- as above
    if handle is None or not handle.uses_sharded_strategy:
        return
    flat = handle.flat_param
    own: dict[tuple[int, str], Shard] = {}
    for i, (info, shape) in enumerate(zip(flat._param_infos, flat._shapes, strict=True)):  # noqa: SLF001
        count = flat._shard_param_infos[i].numel_in_shard or 0  # noqa: SLF001
        parameter = flat if flat._params is None else flat._params[i]  # noqa: SLF001
        shard = own[id(info.module), info.param_name] = Shard(parameter, torch.Size(shape), _reason(count, "FSDP1"))
        yield info.module, info.param_name, shard
    for shared in flat._shared_param_infos:  # noqa: SLF001
        yield shared.module, shared.param_name, own[id(shared.prim_module), shared.prim_param_name]


def _all_below(module: nn.Module) -> Iterator[tuple[nn.Module, str, Shard]]:
    for each in module.modules():
        for name, parameter in each._parameters.items():  # noqa: SLF001
            if parameter is not None:
                yield each, name, Shard(parameter, parameter.shape, SHARDED)


class Outline:
    """A model in which each shard is a tensor of the whole weight's shape, without numbers.

    Extractors find there what they would find in the whole model: names, layouts, heads. Modules without shards, in
    themselves or below, are the model's own; the others are stand-ins of the same type, and the model is untouched.
    """

    def __init__(self, model: nn.Module, shards: Mapping[int, Mapping[str, Shard]]) -> None:
        self._shards = shards
        self._copies: dict[int, nn.Module] = {}
        self._weights: dict[int, tuple[nn.Parameter, Shard]] = {}  # by id of the shard
        self.model = self._copy(model) if shards else model
        self._by_weight = {id(weight): shard for weight, shard in self._weights.values()}

    def shards_in(self, weights: tuple[Tensor, ...]) -> list[Shard]:
        """Return the shards that these tensors of the outline stand for."""
        return [shard for weight in weights if (shard := self._by_weight.get(id(weight))) is not None]

    def held(self, weight: Tensor) -> Tensor:
        """Return what the optimizer holds of a weight of the outline."""
        return self._by_weight[id(weight)].parameter if id(weight) in self._by_weight else weight

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        own = self._shards.get(id(module), {})
        children = {name: child and self._copy(child) for name, child in module._modules.items()}  # noqa: SLF001
        if not own and all(children[name] is child for name, child in module._modules.items()):  # noqa: SLF001
            self._copies[id(module)] = module
            return module
        copy: nn.Module = object.__new__(type(module))
        vars(copy).update({name: value for name, value in vars(module).items() if name not in own})
        parameters = module._parameters | {name: self._weight(shard) for name, shard in own.items()}  # noqa: SLF001
        vars(copy).update(_parameters=parameters, _modules=children)
        self._copies[id(module)] = copy
        return copy

    def _weight(self, shard: Shard) -> nn.Parameter:
        if id(shard) not in self._weights:
            parameter = shard.parameter
            numbers = parameter.is_floating_point() or parameter.is_complex()
            weight = torch.empty(shard.shape, dtype=parameter.dtype, device="meta")
            self._weights[id(shard)] = nn.Parameter(weight, requires_grad=numbers and parameter.requires_grad), shard
        return self._weights[id(shard)][0]


def parameters_of(module: nn.Module, shards: Mapping[int, Mapping[str, Shard]]) -> dict[str, Tensor]:
    """Return a module's own parameters by name, of those that are sharded what the optimizer holds."""
    own = shards.get(id(module), {})
    shown = dict(module.named_parameters(recurse=False))
    return {name: own[name].parameter if name in own else parameter for name, parameter in shown.items()}
