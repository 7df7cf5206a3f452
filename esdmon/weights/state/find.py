"""Find the matrices of a state dict by names, shapes and neighbours, without reading a tensor of a checkpoint."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from esdmon.weights import stacks
from esdmon.weights.found import Found
from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix, checked, mark_unreadable
from esdmon.weights.non_weights import SCALES, of_unknown_layout, why_not_a_weight
from esdmon.weights.optional_layers import is_embedding_name
from esdmon.weights.shard import SHARDED
from esdmon.weights.shards import shard_of
from esdmon.weights.state.adapters import adapter_entries
from esdmon.weights.state.blocks import entries_of_blocks
from esdmon.weights.state.compressed import entries_of_compressed_tensors
from esdmon.weights.state.computed import computed_entries
from esdmon.weights.state.entries import Entry, State, plain_entry, shape_of
from esdmon.weights.state.layouts import Part, parts_of
from esdmon.weights.state.packed import packed_entries
from esdmon.weights.state.packed_by_torch import entries_packed_by_torch
from esdmon.weights.state.renamed import expert_entries
from esdmon.weights.state.tensors import open_state
from esdmon.weights.validation import why_unreadable

_RELATIVE_BIAS = re.compile(r"(^|[._])(rel|relative|pos)_(\w+_)?bias$")
"""Name of a table with a number for each distance and head."""


def find_in_state(weights: Mapping[str, Any]) -> Found:
    """Find the matrices of a mapping of names to tensors, in its order.

    Raises:
        InputError: for a value that is not a tensor.
    """
    state = open_state(weights)
    aliases = _aliases(state)
    found = Found(parameters={name: state.outlines[name] for name in aliases})
    entries = list(_in_order(state, aliases))
    shapes = {entry.name: shape for entry in entries if (shape := shape_of(entry.outline)) is not None}
    shown: set[str] = set()
    for entry in entries:
        parts, why = _parts(entry, state, shapes)
        if not parts:
            found.left_out |= {id(state.outlines[part]): why for part in entry.parts}
            continue
        names = (entry.name, *(aliases.get(entry.parts[0], ()) if entry.is_plain else ()))
        on_request = EMBEDDING if _is_embedding(entry, shapes) else ""
        for part in parts:
            name, *others = (_name_of(each, part) for each in names)
            while name in shown:
                name += ".weight"
            shown.add(name)
            matrix = Matrix(
                name, entry.read, part.to_stack, on_request=on_request, view=entry.view, aliases=tuple(others)
            )
            found.matrices.append(checked(_with_outline(matrix, entry, state)))
    return found


def _aliases(state: State) -> dict[str, tuple[str, ...]]:
    """Return first name -> all other names of each tensor."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, outline in state.outlines.items():
        names.setdefault(_storage_key(outline), []).append(name)
    return {first: tuple(others) for first, *others in names.values()}


def _storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that is equal for two names of one weight, and for no others."""
    with suppress(Exception):  # a nested or sparse tensor has no storage of its own
        if tensor.device.type != "meta" and tensor.layout == torch.strided and tensor.numel() > 0:
            return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    return (id(tensor),)


def _in_order(state: State, names: Mapping[str, object]) -> Iterator[Entry]:
    """Iterate over the parameters of the model, in the order of the tensors that they begin with."""
    packed = (packed_entries, entries_of_blocks, entries_of_compressed_tensors, entries_packed_by_torch)
    recipes = (computed_entries, adapter_entries, *packed, expert_entries)
    made = [entry for recipe in recipes for entry in recipe(state)]
    at = {entry.parts[0]: entry for entry in made}
    taken = {part for entry in made for part in entry.parts}
    for name in state.outlines:
        if name in at:
            yield at[name]
        elif name in names and name not in taken:
            yield plain_entry(state, name)


def _parts(entry: Entry, state: State, shapes: Mapping[str, torch.Size]) -> tuple[list[Part], str]:
    """Return the matrices that a parameter holds; or none, and the reason."""
    if entry.view == "lora-delta":
        return [Part("", stacks.identity)], ""
    why = why_not_a_weight(entry.name, entry.outline, state.outlines) or _why_scales(entry.name, shapes)
    parts = [] if why or entry.name not in shapes else parts_of(entry.name, shapes, state.config)
    return parts, "" if parts else why or of_unknown_layout(entry.outline)


def _name_of(parameter: str, part: Part) -> str:
    name = parameter.removesuffix(".weight")
    return f"{name}/{part.label}" if part.label else name


def _why_scales(name: str, shapes: Mapping[str, torch.Size]) -> str:
    """Return the reason why a weight with a bias of the same shape is omitted."""
    path = name.removesuffix(".weight")
    return SCALES if name != path and name in shapes and shapes.get(f"{path}.bias") == shapes[name] else ""


def _with_outline(matrix: Matrix, entry: Entry, state: State) -> Matrix:
    """Return a matrix that knows its size without being read, and why it cannot be read."""
    outlines = tuple(state.outlines[part] for part in entry.parts)
    shard = shard_of(outlines[0])
    if shard is not None:
        return mark_unreadable(
            matrix, shard.reason or SHARDED, parameters=outlines, shape=matrix.size_for(outlines[0]).shape
        )
    if state.is_lazy or not entry.is_plain:
        matrix = replace(matrix, made_of=lambda: outlines, outline=lambda: entry.outline)
        reason = entry.unreadable or (why_unreadable(entry.outline) if entry.is_plain else "")
        if reason:
            return mark_unreadable(matrix, reason, parameters=outlines)
    return matrix


def _is_embedding(entry: Entry, shapes: Mapping[str, torch.Size]) -> bool:
    """Return whether a parameter is a table of embeddings, by its name, and by the absence of a bias."""
    path = entry.name.removesuffix(".weight")
    if len(entry.outline.shape) != 2 or f"{path}.bias" in shapes or entry.view != "weight":
        return False
    if is_embedding_name(path):
        return not _is_in_sequence(path, shapes)
    return path != entry.name and _RELATIVE_BIAS.search(path) is not None


def _is_in_sequence(path: str, shapes: Mapping[str, torch.Size]) -> bool:
    """Return whether a layer is one of several in an `nn.Sequential`, by the numbers of activations between them."""
    owner, _, number = path.rpartition(".")
    if not number.isdecimal():
        return False
    listed = re.compile(rf"{re.escape(owner)}\.(\d{{1,6}})\.weight")
    numbers = {int(match[1]) for match in map(listed.fullmatch, shapes) if match and len(shapes[match[0]]) == 2}
    return max(numbers, default=0) - min(numbers, default=0) >= len(numbers)
