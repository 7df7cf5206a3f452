"""Rebuild the modules of a pickled model, `torch.save(model)`, without importing or running any code of its classes.

Such a pickle holds the attributes of each module: its parameters, buffers and children, and numbers such as the groups
of a convolution. A layer of torch.nn becomes one of that class, without its `__init__`; a module of any other class
becomes a stand-in that has the name and the attributes, but no code. So the layers are found as in the live model.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from esdmon.weights.checkpoint.pickled import Call, Global, PickleError

_LAYERS: tuple[tuple[type[nn.Module], dict[str, type]], ...] = (
    (nn.Embedding, {"weight": object, "num_embeddings": int, "embedding_dim": int}),
    *(
        (kind, {"weight": object, "in_channels": int, "kernel_size": tuple, "groups": int, "transposed": bool})
        for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose1d, nn.ConvTranspose3d)
    ),
    (nn.LayerNorm, {"weight": object, "normalized_shape": tuple, "eps": float}),
    (nn.MultiheadAttention, {"out_proj": Call, "in_proj_weight": object, "num_heads": int, "head_dim": int}),
    (nn.RNNBase, {"mode": str, "hidden_size": int, "bidirectional": bool, "_flat_weights_names": list}),
)
"""Layer of torch.nn -> attributes by which it is found, in a class derived from it too: a pickle names no bases."""
_MAKERS = ("copy_reg._reconstructor", "copyreg._reconstructor", "copy_reg.__newobj__", "copyreg.__newobj__")
"""Functions that make an object of the class that is their first argument."""
_RESERVED = set(vars(nn.Module())) - {"training"}
"""Attributes of a module that torch fills: registries and hooks."""
_DEEPEST_MODULE = 100  # modules inside modules; our choice
_DEEPEST_VALUE = 6  # containers inside containers in an attribute, such as a configuration; our choice


def is_module(value: object) -> bool:
    """Return whether a value of a pickle is a module."""
    return isinstance(value, Call) and _state_of(value) is not None


def weights_of(module: Call, is_tensor: Callable[[object], bool]) -> Iterator[Any]:
    """Iterate over the descriptions of all parameters of a module, and of the modules inside of it."""
    waiting, seen = [module], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            state = _state_of(part) or {}
            yield from filter(is_tensor, _registry(state, "_parameters").values())
            waiting += filter(is_module, _registry(state, "_modules").values())


def rebuild(
    stored: Mapping[str, Call], is_tensor: Callable[[object], bool], load: Callable[[Any], Tensor]
) -> nn.Module:
    """Return a module with the structure, the weights and the plain attributes of pickled ones.

    Args:
        stored: modules by name, as `parse` returns them; one that has an empty name is the model.
        is_tensor: whether a value describes a tensor.
        load: returns the tensor of a description; called once for each.

    Raises:
        PickleError: for modules that are nested too deeply.
    """
    builder = _Builder(is_tensor, load)
    modules = {name: builder.build(module) for name, module in stored.items()}
    if list(modules) == [""]:
        return modules[""]
    root = nn.Module()
    vars(root)["_modules"].update(modules)  # names may contain dots; the children of one without a name keep theirs
    return root


@final
class _Builder:
    """Modules and tensors that were rebuilt so far, by the objects of the pickle, so that shared ones stay shared."""

    def __init__(self, is_tensor: Callable[[object], bool], load: Callable[[Any], Tensor]) -> None:
        self._is_tensor = is_tensor
        self._load = load
        self._tensors: dict[int, Tensor] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._modules: dict[int, nn.Module] = {}

    def build(self, stored: Call, depth: int = 0) -> nn.Module:
        """Return the module of a record, and those inside of it."""
        if id(stored) in self._modules:
            return self._modules[id(stored)]
        if depth > _DEEPEST_MODULE:
            raise PickleError("it nests modules too deeply")
        state = _state_of(stored) or {}
        kind = _class_of(stored, state)
        module = self._modules[id(stored)] = object.__new__(kind)
        nn.Module.__init__(module)
        # Into the dictionaries of the module, since a name from a file need not be a valid one, and no code may run.
        vars(module).update(self._attributes(state))
        vars(module)["_parameters"].update(
            (name, self._parameter(value)) for name, value in _registry(state, "_parameters").items()
        )
        vars(module)["_buffers"].update(
            (name, self._tensor(value))
            for name, value in _registry(state, "_buffers").items()
            if self._is_tensor(value)
        )
        vars(module)["_modules"].update(
            (name, self.build(value, depth + 1) if is_module(value) else None)
            for name, value in _registry(state, "_modules").items()
        )
        vars(module)["_forward_pre_hooks"].update(_hooks_of(state))
        return module

    def _tensor(self, value: Any) -> Tensor:
        if id(value) not in self._tensors:
            self._tensors[id(value)] = self._load(value)
        return self._tensors[id(value)]

    def _parameter(self, value: Any) -> nn.Parameter | None:
        if not self._is_tensor(value):
            return None
        if id(value) not in self._parameters:
            tensor = self._tensor(value)
            self._parameters[id(value)] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        return self._parameters[id(value)]

    def _attributes(self, state: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
        """Iterate over the attributes that are numbers, texts or containers of these, or tensors that a hook computes.

        None may stand in the place of a method, which would then be called.
        """
        for key, value in state.items():
            if isinstance(key, str) and key not in _RESERVED and not callable(getattr(nn.Module, key, None)):
                if self._is_tensor(value):
                    yield key, self._tensor(value)
                else:
                    with suppress(_NotPlainError):
                        yield key, _plain(value)


class _NotPlainError(Exception):
    """Raised for a value that is neither a number, a text, nor a container of these."""


def _state_of(call: Call) -> Mapping[Any, Any] | None:
    """Return the attributes of a module; None for an object of another kind.

    They are the state of an object, or an argument of the function that makes it, as of a graph of torch.fx.
    """
    for value in (call.state, *call.arguments):
        if isinstance(value, Mapping) and {"_parameters", "_modules"} <= value.keys():
            return value
    return None


def _registry(state: Mapping[Any, Any], key: str) -> dict[str, Any]:
    registry = state.get(key)
    return {str(name): value for name, value in registry.items()} if isinstance(registry, Mapping) else {}


def _class_of(stored: Call, state: Mapping[Any, Any]) -> type[nn.Module]:
    """Return the class of torch.nn that a module has, or a stand-in for any other, derived from the layer it is.

    One without the attributes of its layer, as in a damaged file, is a stand-in too.
    """
    name = _class_name(stored)
    attributes = {**state, **_registry(state, "_parameters"), **_registry(state, "_modules")}
    known = _class_of_torch(name)
    if known is not None and issubclass(known, nn.Module):
        needed = next((needed for kind, needed in _LAYERS if issubclass(known, kind)), {})
        if _has(attributes, needed):
            return known
    base = next((kind for kind, needed in _LAYERS if _has(attributes, needed)), nn.Module)
    package, _, own = name.rpartition(".")
    return type(own or "Module", (base,), {"__module__": package})


def _has(attributes: Mapping[Any, Any], needed: Mapping[str, type]) -> bool:
    """Return whether a module has attributes of these types; lists are of texts."""
    found = {key: attributes[key] for key in needed if key in attributes}
    return len(found) == len(needed) and all(
        isinstance(value, needed[key]) and (not isinstance(value, list) or all(isinstance(each, str) for each in value))
        for key, value in found.items()
    )


def _class_name(stored: Call) -> str:
    """Return the qualified name of the class of an object, however its pickle has been made."""
    first = stored.arguments[0] if stored.arguments else None
    return first.name if isinstance(first, Global) and stored.name.endswith(_MAKERS) else stored.name


def _class_of_torch(name: str) -> type | None:
    """Return a class of torch.nn that is imported already; None for another one."""
    package, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(package), own, None) if f"{package}.".startswith("torch.nn.") else None
    return found if isinstance(found, type) and found.__module__.startswith("torch.nn.") else None


def _hooks_of(state: Mapping[Any, Any]) -> Iterator[tuple[int, Any]]:
    """Iterate over the hooks by which torch computes a weight from parameters, with their numbers and texts."""
    for number, hook in enumerate(_registry(state, "_forward_pre_hooks").values()):
        kind = _class_of_torch(_class_name(hook)) if isinstance(hook, Call) else None
        if kind is not None and issubclass(kind, WeightNorm | SpectralNorm | BasePruningMethod):
            made = object.__new__(kind)
            vars(made).update({key: value for key, value in hook.state.items() if isinstance(value, int | float | str)})
            yield number, made


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value without objects, but for those that are a record of plain values, as a configuration."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if depth > _DEEPEST_VALUE:
        raise _NotPlainError
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, depth + 1) for each in value)
    if isinstance(value, Mapping):
        return {key: _plain(each, depth + 1) for key, each in value.items() if isinstance(key, str | int)}
    if isinstance(value, Call) and isinstance(value.state, Mapping) and not is_module(value):
        return SimpleNamespace(**dict(_plain_items(value.state, depth + 1)))
    raise _NotPlainError


def _plain_items(state: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(key, str):
            with suppress(_NotPlainError):
                yield key, _plain(value, depth)
