"""Rebuild the modules of a pickled model, `torch.save(model)`, without importing or running any code of its classes.

Such a pickle holds the attributes of each module: its parameters, buffers and children, and numbers such as the groups
of a convolution. A layer of torch.nn is rebuilt with its class, without calling `__init__`. A module of any other class
becomes a stand-in with its name and attributes, but without code. So the same layers are found as in the live model.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod, Identity
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from esdmon.errors import InputError
from esdmon.weights.checkpoint.pickled import Call, Global, PickleError, everything
from esdmon.weights.checkpoint.stored import AnyStored, TensorDescription, is_tensor

_Kinds = tuple[tuple[type[nn.Module], Mapping[str, type | int]], ...]
_LAYERS: _Kinds = (
    (nn.Embedding, {"weight": object, "num_embeddings": int, "embedding_dim": int}),
    *(
        (kind, {"weight": object, "in_channels": int, "kernel_size": tuple, "groups": int, "transposed": bool})
        for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose1d, nn.ConvTranspose3d)
    ),
    (nn.LayerNorm, {"weight": object, "normalized_shape": tuple}),
    (nn.MultiheadAttention, {"out_proj": Call, "in_proj_weight": object, "num_heads": int, "head_dim": int}),
    (nn.RNNBase, {"mode": str, "hidden_size": int, "bidirectional": bool, "_flat_weights_names": list}),
)
"""Layer of torch.nn -> attributes by which it is found, in a class derived from it too: a pickle names no bases."""


def _stand_in(name: str, base: type[nn.Module] = nn.Module) -> type[nn.Module]:
    """Return a class with a qualified name, and no code of its own."""
    package, _, own = name.rpartition(".")
    return type(own or "Module", (base,), {"__module__": package})


_BASES: _Kinds = (
    *_LAYERS,
    (nn.Linear, {"weight": 2, "in_features": int, "out_features": int}),
    (nn.Bilinear, {"weight": 3, "in1_features": int, "in2_features": int}),
    (nn.parallel.DistributedDataParallel, {"module": Call, "broadcast_buffers": bool, "find_unused_parameters": bool}),
    (nn.DataParallel, {"module": Call, "device_ids": object}),
    (AveragedModel, {"module": Call, "avg_fn": object, "use_buffers": bool}),
    (_stand_in("peft.PeftModel"), {"base_model": Call, "peft_type": object, "active_adapter": str}),
    (_stand_in("peft.BaseTuner"), {"model": Call, "peft_config": dict, "targeted_module_names": object}),
)
"""Class -> attributes by which one derived from it is found: the layers, and wrappers that are looked through."""
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
"""Class of the result of torch.compile, which is created by a call with the module as argument."""
_MAKERS = ("copy_reg._reconstructor", "copyreg._reconstructor", "copy_reg.__newobj__", "copyreg.__newobj__")
"""Functions that make an object of the class that is their first argument."""
_RESERVED = set(vars(nn.Module())) - {"training"}
"""Attributes of a module that torch fills: registries and hooks."""
_DEEPEST_MODULE = 100  # modules inside modules; our choice
_MOST_NAMES = 1_000_000  # of modules, those that are shared counted under each; our choice
_DEEPEST_VALUE = 6  # containers inside containers in an attribute, such as a configuration; our choice


def is_module(value: object) -> bool:
    """Return whether a value of a pickle is a module."""
    return isinstance(value, Call) and _state_of(value) is not None


def weights_of(module: Call) -> Iterator[TensorDescription]:
    """Iterate over all parameters of a module and those inside, with those that only the code of a class can find."""
    waiting, seen = [module], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            state = _state_of(part) or {}
            inside = [*_registry(state, "_modules").values()]
            waiting += filter(is_module, inside)
            others = [value for value in inside if not is_module(value)]
            yield from filter(is_tensor, everything([*_registry(state, "_parameters").values(), *others]))


def state_of(module: Call) -> dict[str, TensorDescription]:
    """Return the descriptions of all parameters and buffers of a module, by name, as its `state_dict()` has them.

    Raises:
        InputError: for weights that only the code of a class can find.
        PickleError: for modules that contain themselves, or are shared under too many names.
    """
    found: dict[str, Any] = {}
    waiting, names = [("", module)], 0
    while waiting:
        names += 1
        prefix, part = waiting.pop()
        if names > _MOST_NAMES or prefix.count(".") > _DEEPEST_MODULE:
            raise PickleError("it nests modules too deeply, or shares them under too many names")
        state = _state_of(part) or {}
        for name, value in (_registry(state, "_parameters") | _registry(state, "_buffers")).items():
            if is_tensor(value):
                found[f"{prefix}{name}"] = value
            elif name in _registry(state, "_parameters"):
                _check_without_weights(value, "parameter")
        for name, value in reversed(_registry(state, "_modules").items()):
            if is_module(value):
                waiting.append((f"{prefix}{name}.", value))
            else:
                _check_without_weights(value, "module")
    return found


def rebuild(stored: Mapping[str, Call], load: Callable[[AnyStored], Tensor]) -> nn.Module:
    """Return a module with the structure, the weights and the plain attributes of pickled ones.

    Args:
        stored: modules by name, as `parse` returns them; one that has an empty name is the model.
        load: returns the tensor of a description; called once for each.

    Raises:
        InputError: for weights that only the code of a class can find.
        PickleError: for modules that are nested too deeply, or contain themselves.
    """
    builder = _Builder(load)
    modules = {name: builder.build(module) for name, module in stored.items()}
    if list(modules) == [""]:
        return modules[""]
    root = nn.Module()
    vars(root)["_modules"].update(modules)  # names may contain dots; the children of one without a name keep theirs
    return root


@final
class _Builder:
    """Modules and tensors that were rebuilt so far, by the objects of the pickle, so that shared ones stay shared."""

    def __init__(self, load: Callable[[AnyStored], Tensor]) -> None:
        self._load = load
        self._tensors: dict[int, Tensor] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._modules: dict[int, nn.Module] = {}
        self._names: dict[int, int] = {}  # modules that a module contains, by every name, and itself
        self._plain: dict[tuple[int, int], Any] = {}  # by the object and its depth: shared ones are converted once

    def build(self, stored: Call, depth: int = 0) -> nn.Module:
        """Return the module of a record, and those inside of it."""
        if id(stored) in self._names:
            return self._modules[id(stored)]
        if id(stored) in self._modules:
            raise PickleError("a module in it contains itself")
        if depth > _DEEPEST_MODULE:
            raise PickleError("it nests modules too deeply")
        state = _state_of(stored) or {}
        module = self._modules[id(stored)] = object.__new__(_class_of(stored, state))
        nn.Module.__init__(module)
        # Into the dictionaries of the module, since a name from a file need not be a valid one, and no code may run.
        vars(module).update(self._attributes(state))
        vars(module)["_parameters"].update(
            (name, self._parameter(value)) for name, value in _registry(state, "_parameters").items()
        )
        vars(module)["_buffers"].update(
            (name, self._tensor(value)) for name, value in _registry(state, "_buffers").items() if is_tensor(value)
        )
        inside = _registry(state, "_modules")
        vars(module)["_modules"].update((name, self._child(value, depth + 1)) for name, value in inside.items())
        vars(module)["_forward_pre_hooks"].update(_hooks_of(state))
        names = self._names[id(stored)] = 1 + sum(self._names.get(id(value), 0) for value in inside.values())
        if names > _MOST_NAMES:
            raise PickleError("it shares modules under too many names")
        return module

    def _child(self, value: Any, depth: int) -> nn.Module | None:
        if is_module(value):
            return self.build(value, depth)
        _check_without_weights(value, "module")
        return None

    def _tensor(self, value: Any) -> Tensor:
        if id(value) not in self._tensors:
            self._tensors[id(value)] = self._load(value)
        return self._tensors[id(value)]

    def _parameter(self, value: Any) -> nn.Parameter | None:
        if not is_tensor(value):
            _check_without_weights(value, "parameter")
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
                plain = self._tensor(value) if is_tensor(value) else self._as_plain(value)
                if plain is not _OTHER:
                    yield key, plain

    def _as_plain(self, value: Any, depth: int = 0) -> Any:
        """Return a value without objects except for records of plain values, such as a configuration; else `_OTHER`."""
        if isinstance(value, bool | int | float | str) or value is None:
            return value
        if depth > _DEEPEST_VALUE:
            return _OTHER
        key = id(value), depth
        if key not in self._plain:
            self._plain[key] = self._convert(value, depth + 1)
        return self._plain[key]

    def _convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, list | tuple):
            items = [self._as_plain(each, depth) for each in value]
            return _OTHER if any(each is _OTHER for each in items) else type(value)(items)
        if isinstance(value, Mapping):
            pairs = {key: self._as_plain(each, depth) for key, each in value.items() if isinstance(key, str | int)}
            return _OTHER if any(each is _OTHER for each in pairs.values()) else pairs
        if isinstance(value, Call) and isinstance(value.state, Mapping) and not is_module(value):
            record = {key: self._as_plain(each, depth) for key, each in value.state.items() if isinstance(key, str)}
            return SimpleNamespace(**{key: each for key, each in record.items() if each is not _OTHER})
        return _OTHER


_OTHER = object()
"""Placeholder for a value that is neither a number, a text, nor a container of these."""


def _check_without_weights(value: Any, what: str) -> None:
    """Raise for an object in the place of a module or parameter that holds tensors: they would be missing."""
    kind = _class_name(value) if isinstance(value, Call) else type(value).__name__
    if kind.startswith("torch.nn.parameter.Uninitialized"):
        raise InputError("contains lazy layers without weights: run one batch through the model before it is saved")
    if value is not None and any(map(is_tensor, everything(value))):
        raise InputError(
            f"is refused: only code of the class {kind} can find the weights of a {what} in it, and none is run. "
            "Save the model's state_dict() alone"
        )


def _state_of(call: Call) -> Mapping[Any, Any] | None:
    """Return the attributes of a module; None for an object of another kind.

    They are the state of an object, or in it, beside its slots; or an argument of the function that makes it, as of a
    graph of torch.fx.
    """
    if call.name == _COMPILED and call.arguments and is_module(call.arguments[0]):
        return {"_parameters": {}, "_modules": {"_orig_mod": call.arguments[0]}}
    states = call.state if isinstance(call.state, tuple) else (call.state,)
    for value in (*states, *call.arguments):
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
    return _stand_in(name, next((kind for kind, needed in _BASES if _has(attributes, needed)), nn.Module))


def _has(attributes: Mapping[Any, Any], needed: Mapping[str, type | int]) -> bool:
    """Return whether a module has attributes of these types, or tensors of as many sides; lists are of texts."""
    return all(key in attributes and _fits(attributes[key], kind) for key, kind in needed.items())


def _fits(value: Any, kind: type | int) -> bool:
    if isinstance(kind, int):
        return len(getattr(value, "shape", ())) == kind
    return isinstance(value, kind) and (not isinstance(value, list) or all(isinstance(each, str) for each in value))


def _class_name(stored: Call) -> str:
    """Return the qualified name of the class of an object, for all ways of pickling it."""
    first = stored.arguments[0] if stored.arguments else None
    return first.name if isinstance(first, Global) and stored.name.endswith(_MAKERS) else stored.name


def _class_of_torch(name: str) -> type | None:
    """Return a class of torch.nn that is imported already; None for another one."""
    package, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(package), own, None) if f"{package}.".startswith("torch.nn.") else None
    return found if isinstance(found, type) and found.__module__.startswith("torch.nn.") else None


def _hooks_of(state: Mapping[Any, Any]) -> Iterator[tuple[int, Any]]:
    """Iterate over the hooks by which torch computes a weight from parameters, with their numbers and texts.

    Raises:
        PickleError: for a weight norm of sides that do not fit, for which a kernel of torch writes outside its memory.
    """
    for number, hook in enumerate(_registry(state, "_forward_pre_hooks").values()):
        if not isinstance(hook, Call) or not isinstance(hook.state, Mapping):
            continue
        kind = _class_of_torch(_class_name(hook))
        if isinstance(hook.state.get("_tensor_name"), str):
            kind = kind if kind is not None and issubclass(kind, BasePruningMethod) else Identity  # of the user's own
        elif kind not in (WeightNorm, SpectralNorm) or not isinstance(hook.state.get("name"), str):
            continue
        if kind is WeightNorm and not _has_norm(hook.state, _registry(state, "_parameters")):
            raise PickleError("a weight norm in it has impossible sides")
        made = object.__new__(kind)
        vars(made).update({key: value for key, value in hook.state.items() if isinstance(value, int | float | str)})
        yield number, made


def _has_norm(hook: Mapping[Any, Any], parameters: Mapping[str, Any]) -> bool:
    """Return whether a module has the direction and the norms that a weight norm multiplies."""
    direction, norms = (parameters.get(f"{hook['name']}_{part}") for part in "vg")
    dim, sides, found = hook.get("dim"), getattr(direction, "shape", ()), getattr(norms, "shape", None)
    if not isinstance(dim, int) or found is None or getattr(direction, "dtype", None) != getattr(norms, "dtype", None):
        return False
    if dim == -1:  # one norm for all
        return not found
    return 0 <= dim < len(sides) and found == tuple(side if at == dim else 1 for at, side in enumerate(sides))
