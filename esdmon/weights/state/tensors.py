"""List the tensors of a state dict, under the names that the model's author gave them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.errors import InputError
from esdmon.weights.names import PROMPT
from esdmon.weights.state.entries import State
from esdmon.weights.state.renamed import name_in_module

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_PREFIXES = ("module.", "base_model.model.", "_module.")
"""Prefixes of every name by DataParallel, DistributedDataParallel, AveragedModel, peft and Opacus."""
_OF_KERAS = "_torch_params."
"""Between the name of a layer of Keras and the path of its variable."""
_LORA = re.compile(r"\.lora_(embedding_)?[AB]\b")
_BASE_LAYER = re.compile(r"\.base_layer(?=\.)(?!(\.base_layer)*\.lora_)")
"""Prefix of the name of a base in peft; adapters of several parameters of one module are nested, and keep it."""


def open_state(weights: Mapping[str, Any]) -> State:
    """Return the tensors of a mapping, under their names in the module.

    Raises:
        InputError: for a value that is not a tensor, nor any other thing that state dicts contain, and for two tensors
            whose names are equal as texts, such as 1 and "1".
    """
    lazy = getattr(weights, "outlines", None)
    flat = dict(lazy if lazy is not None else _named_once(_flat(weights)))
    config = getattr(weights, "config", {})
    clean = {name_in_module(name, config): raw for name, raw in _clean_names(flat).items()}
    reasons = getattr(weights, "unreadable", {})
    return State(
        outlines={name: flat[raw] for name, raw in clean.items()},
        read=lambda name: weights[clean[name]] if clean[name] in weights else flat[clean[name]],
        is_lazy=lazy is not None,
        unreadable={name: reasons[raw] for name, raw in clean.items() if raw in reasons},
        config=config,
    )


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
    by_path = _by_paths_of_keras(_without_prompts(clean))
    found: dict[str, str] = {}
    for name, shown in by_path.items():
        is_taken = shown in found or (shown != name and by_path.get(shown) == shown)  # by another tensor
        found[name if is_taken or not shown else shown] = name
    return found


def _without_prompts(clean: Mapping[str, str]) -> Mapping[str, str]:
    """Return the names without the part `model` of attention layers that peft's LLaMA-Adapter has wrapped."""
    around = [shown.removesuffix(PROMPT) for shown in clean.values() if shown.endswith(f".{PROMPT}")]

    def as_in_model(shown: str) -> str:
        layer = next((each for each in around if shown.startswith(f"{each}model.")), None)
        return shown if layer is None else layer + shown.removeprefix(f"{layer}model.")

    return {name: as_in_model(shown) for name, shown in clean.items()} if around else clean


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
