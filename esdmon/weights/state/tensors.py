"""List the tensors of a state dict, under the names that the model's author gave them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.errors import InputError

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_PREFIXES = ("module.", "base_model.model.", "_module.")
"""Prefixes of every name by DataParallel, DistributedDataParallel, AveragedModel, peft and Opacus."""
_OF_KERAS = "_torch_params."
"""Between the name of a layer of Keras and the path of its variable."""
_LORA = re.compile(r"\.lora_(embedding_)?[AB]\b")
_BASE_LAYER = re.compile(r"\.base_layer(?=\.)(?!(\.base_layer)*\.lora_)")
"""Prefix of the name of a base in peft; adapters of several parameters of one module are nested, and keep it."""


@dataclass(frozen=True, slots=True)
class State:
    """Names, shapes and values of tensors, with their configuration."""

    outlines: Mapping[str, Tensor]
    """Tensors of the right shape and dtype, which may be on the meta device."""
    read: Callable[[str], Tensor]
    """Returns the tensor of a name."""
    is_lazy: bool
    """True if the values are on disk."""
    unreadable: Mapping[str, str]
    """Reasons why tensors cannot be read, by name."""
    config: Mapping[str, Any]
    """`config.json` or `adapter_config.json`; empty without one."""

    def shape(self, name: str) -> torch.Size | None:
        """Return the shape of a tensor; None if there is none of that name, or it has no shape."""
        return shape_of(self.outlines[name]) if name in self.outlines else None

    def settings(self, key: str) -> Mapping[str, Any]:
        """Return the settings under a key of the configuration; empty without any."""
        settings = self.config.get(key)
        return settings if isinstance(settings, dict) else {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter of the model: a tensor of the state dict, or computed from several."""

    name: str
    """Name of the parameter in the model."""
    outline: Tensor
    """Outline of the weight that the layer uses."""
    read: Callable[[], Tensor]
    parts: tuple[str, ...]
    """Names of the stored tensors from which it is computed."""
    view: str = "weight"
    unreadable: str = ""
    """Reason why it cannot be read."""
    is_plain: bool = False
    """True if it is one unchanged tensor of the state dict."""


def shape_of(tensor: Tensor) -> torch.Size | None:
    """Return the shape of a tensor; None for a nested tensor, which has none."""
    with suppress(Exception):
        return tensor.shape
    return None


def _outline_like(outline: Tensor) -> Tensor:
    """Return a tensor of the same shape on the meta device: of the same dtype, or float32 for packed numbers."""
    dtype = outline.dtype if outline.is_floating_point() and outline.dtype.itemsize > 1 else torch.float32
    return torch.empty(outline.shape, dtype=dtype, device="meta")


Rename = Callable[[str, Mapping[str, Any]], str]
"""`(stored name, configuration)` to the name in the module."""


def open_state(weights: Mapping[str, Any], rename: Rename) -> State:
    """Return the tensors of a mapping, with the names of wrappers removed.

    Args:
        weights: names and tensors.
        rename: applied to the names without wrappers.

    Raises:
        InputError: for a value that is not a tensor, nor any other thing that state dicts contain, and for two tensors
            whose names are equal as texts, such as 1 and "1".
    """
    lazy = getattr(weights, "outlines", None)
    flat = dict(lazy if lazy is not None else _named_once(_flat(weights)))
    config = getattr(weights, "config", {})
    clean = {rename(name, config): raw for name, raw in _clean_names(flat).items()}
    reasons = getattr(weights, "unreadable", {})
    return State(
        outlines={name: flat[raw] for name, raw in clean.items()},
        read=lambda name: weights[clean[name]] if clean[name] in weights else flat[clean[name]],
        is_lazy=lazy is not None,
        unreadable={name: reasons[raw] for name, raw in clean.items() if raw in reasons},
        config=config,
    )


def plain_entry(state: State, name: str) -> Entry:
    """Return the entry of one tensor, unchanged."""
    outline = state.outlines[name]
    return Entry(
        name, outline, partial(state.read, name), (name,), unreadable=state.unreadable.get(name, ""), is_plain=True
    )


def computed_entry(
    state: State,
    name: str,
    parts: Sequence[str | None],
    compute: Callable[..., Tensor],
    *,
    outline: Tensor | None = None,
) -> Entry:
    """Return the entry of a weight that is computed from several tensors.

    Args:
        state: the state dict.
        name: of the weight.
        parts: names of the tensors; None, or a name that the state dict lacks, for an optional one.
        compute: takes the tensors, and None for one that is lacking.
        outline: of the weight; by default it has the shape of the first tensor.
    """
    held = tuple(part for part in parts if part is not None and part in state.outlines)

    def read() -> Tensor:
        return compute(*(state.read(part) if part in held else None for part in parts))

    return Entry(name, _outline_like(state.outlines[held[0]]) if outline is None else outline, read, held)


def unread_entry(state: State, name: str, parts: tuple[str, ...], why: str) -> Entry:
    """Return the entry of a weight that is made of these tensors, and why it cannot be read."""
    first = parts[0]
    return Entry(name, _outline_like(state.outlines[first]), partial(state.read, first), parts, unreadable=why)


def _flat(weights: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Iterate over names and tensors. A module may save other values: its extra state, or packed parameters."""
    for name, value in weights.items():
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, tuple | torch.ScriptObject):
            yield from _inside(str(name), value)
        elif value is not None and not _is_extra(str(name), value):
            kind = type(value).__name__
            remedy = ". Convert arrays by torch.as_tensor()" if hasattr(value, "__array__") else ""
            remedy = ". Join its modules in an nn.ModuleDict" if isinstance(value, nn.Module) else remedy
            raise InputError(f"{name!r} is a {kind}: a model is an nn.Module or a mapping of names to tensors{remedy}")


def _named_once(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise InputError(f"contains two tensors named {name!r}")
        found[name] = tensor
    return found


def _is_extra(name: str, value: object) -> bool:
    """Return whether a value is not a weight: the extra state of a module, of any type, or metadata."""
    last = name.rpartition(".")[2]
    return isinstance(value, bytes | torch.dtype) or last == "_extra_state" or last.startswith("_metadata")


def _inside(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors in packed parameters, under the names that they have in a file of `torch.save`."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, torch.ScriptObject):
        with suppress(Exception):  # an object of a user's own class need not have a state
            yield from _inside(name, value.__getstate__())
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _inside(f"{name}.{index}", part)


def _clean_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return clean name -> stored name."""
    clean = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    prefix = _common_prefix(clean, tensors)
    while prefix:
        clean = {name: shown.removeprefix(prefix) for name, shown in clean.items()}
        prefix = _common_prefix(clean, tensors)
    if any(_LORA.search(name) for name in tensors):
        clean = {name: _BASE_LAYER.sub("", shown) for name, shown in clean.items()}
    by_path = _by_paths_of_keras(clean)
    found: dict[str, str] = {}
    for name, shown in by_path.items():
        is_taken = shown in found or (shown != name and by_path.get(shown) == shown)  # by another tensor
        found[name if is_taken or not shown else shown] = name
    return found


def _by_paths_of_keras(clean: Mapping[str, str]) -> Mapping[str, str]:
    """Return the names with each variable of Keras once: each layer has those of all layers inside it as well."""
    owners: dict[str, set[str]] = {}
    for shown in clean.values():
        owner, is_keras, path = shown.partition(_OF_KERAS)
        if is_keras:
            owners.setdefault(path, set()).add(owner)
    if not owners:
        return clean
    by_path: dict[str, str] = {}
    for name, shown in clean.items():
        owner, is_keras, path = shown.partition(_OF_KERAS)
        if not is_keras:
            by_path[name] = shown
        elif not any(owner != other and owner.startswith(other) for other in owners[path]):
            by_path[name] = f"{owner}{path}"
    return by_path


def _common_prefix(clean: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix of a wrapper that all names have, but those of counters such as `n_averaged`."""
    shown = [each for name, each in clean.items() if tensors[name].dim() > 0]
    return next((prefix for prefix in _PREFIXES if shown and all(each.startswith(prefix) for each in shown)), "")
