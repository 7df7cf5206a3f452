"""Define `Outline`: a copy of a model with a stand-in for each shard, of the whole weight's shape and without values.

`filled` substitutes values for stand-ins.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights import torch_private
from esdmon.weights.shard import Shard

_filled: ContextVar[Mapping[int, nn.Parameter]] = ContextVar("filled", default={})  # noqa: B039 -- never changed in place


@contextmanager
def filled(values: Mapping[int, Tensor]) -> Iterator[None]:
    """Substitute values for stand-ins while the block runs, in this thread only.

    Args:
        values: by id of the stand-in, in its shape.
    """
    # As parameters, since `get_parameter` checks that.
    token = _filled.set({key: nn.Parameter(value, requires_grad=False) for key, value in values.items()})
    try:
        yield
    finally:
        _filled.reset(token)


def are_filled(stand_ins: tuple[Tensor, ...]) -> bool:
    """Return whether all of these stand-ins have values in this thread."""
    return all(id(stand_in) in _filled.get() for stand_in in stand_ins)


class _Parameters(dict[str, nn.Parameter | None]):
    """The parameters of a stand-in for a module: looked up one at a time they are those of `filled`."""

    def __getitem__(self, name: str) -> nn.Parameter | None:
        """Return the value that a stand-in is filled with, or the stand-in."""
        value = super().__getitem__(name)
        return _filled.get().get(id(value), value)


class Outline:
    """A copy of a model in which each shard is a tensor on the meta device of the whole weight's shape.

    Extractors find there what they would find in the whole model: names, layouts, heads. Modules without shards, in
    themselves or below, are the model's own; the others are stand-ins of the author's type. The model is not changed.

    Args:
        model: the model.
        shards: its shards, from `find_shards`, which are read in their place.
    """

    def __init__(self, model: nn.Module, shards: Mapping[int, Mapping[str, Shard]]) -> None:
        self._shards = shards
        self._copies: dict[int, nn.Module] = {}
        self._weights: dict[int, tuple[nn.Parameter, Shard]] = {}  # by id of the shard
        self._flattened = {id(shard.parameter) for own in shards.values() for shard in own.values()}
        self.model = self._copy(model) if shards else model
        self._by_weight = {id(weight): shard for weight, shard in self._weights.values()}

    def shard_of(self, weight: Tensor) -> Shard | None:
        """Return the shard that a tensor of the outline represents; None for a tensor of the model itself."""
        return self._by_weight.get(id(weight))

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        own = self._shards.get(id(module), {})
        children = torch_private.children_of(module)
        copies = {name: None if child is None else self._copy(child) for name, child in children.items()}
        if not own and all(copies[name] is child for name, child in children.items()):
            self._copies[id(module)] = module
            return module
        kind: Any = torch_private.authors_class(module)
        copy: nn.Module = object.__new__(torch_private.without_finalizer(kind))
        vars(copy).update({name: value for name, value in vars(module).items() if name not in own})
        stand_ins = {name: self._stand_in(shard) for name, shard in own.items()}
        shown = torch_private.parameters_of(module).items()
        unflattened = {name: weight for name, weight in shown if id(weight) not in self._flattened}
        parameters = _Parameters(unflattened | stand_ins)
        vars(copy).update(_parameters=parameters, _modules=copies)
        self._copies[id(module)] = copy
        return copy

    def _stand_in(self, shard: Shard) -> nn.Parameter:
        if id(shard) not in self._weights:
            parameter = shard.parameter
            can_require_grad = shard.dtype.is_floating_point or shard.dtype.is_complex
            weight = torch.empty(shard.shape, dtype=shard.dtype, device="meta")
            stand_in = nn.Parameter(weight, requires_grad=can_require_grad and parameter.requires_grad)
            self._weights[id(shard)] = stand_in, shard
        return self._weights[id(shard)][0]
