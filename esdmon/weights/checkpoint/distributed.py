"""Read folders of torch's distributed checkpoints, without torch's loader, which would execute pickled code.

The index of a checkpoint lists the tensors and the places of their chunks; a chunk is a file of `torch.save` inside a
`.distcp` file. The index is rejected if it names code that an index does not need.

If all layers of a transformer are alike, Megatron-Core writes one tensor for each of their parameters, with the layers
along its first side: `decoder.layers.mlp.linear_fc1.weight`. They are read layer by layer, under the names that it
gives to layers that differ: `decoder.layers.0.mlp.linear_fc1.weight`. Gate and up-projection may be two tensors,
`linear_fc1.weight_w` and `linear_fc1.weight_v`: they are read as one tensor, as in the model.
"""

import io
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.weights.checkpoint.containers import LIGHTNING, find_models, unflattened, without_optimizer
from esdmon.weights.checkpoint.file_part import open_part
from esdmon.weights.checkpoint.mapping import Checkpoint
from esdmon.weights.checkpoint.pickled import Call, CodeError, parse
from esdmon.weights.checkpoint.stored import BUILDERS, TensorDescription, dtype_of
from esdmon.weights.checkpoint.torch_file import load_content

INDEX = ".metadata"
SUFFIX = ".distcp"
_METADATA = "torch.distributed.checkpoint.metadata."
BESIDE = ("meta.pt", "common.pt")
"""Files of Lightning and Megatron-Core beside an index, with data other than tensors."""
_MOST_LAYERS = 1000  # largest number of layers that are split: a damaged index may contain any number; our choice
_HALF = re.compile(r"(?P<whole>(.+\.)?linear_fc1\.(weight|bias)\d*)_(?P<half>[wv])")
_STACKED = re.compile(r"(?P<layers>(.+\.)?layers)\.(?!\d+\.).+")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor, and its place in a file."""

    offsets: tuple[int, ...]
    file: str
    start: int
    length: int
    shape: tuple[int, ...] = ()

    def has_layer(self, layer: int) -> bool:
        """Return whether a place along the first side lies in it."""
        return self.offsets[0] <= layer < self.offsets[0] + self.shape[0]


@dataclass(frozen=True, slots=True)
class _Entry(TensorDescription):
    """A tensor of the index."""

    chunks: tuple[_Chunk, ...]
    layer: int | None = None
    """Index along the first side of the stored tensor, if the entry is a slice of it."""


def open_distributed(folder: Path) -> Checkpoint:
    """Open a folder that `torch.distributed.checkpoint.save` wrote.

    Raises:
        InputError: for a damaged index, one that contains more than descriptions of tensors, or a missing file.
    """
    try:
        entries, paths = _load_index(folder / INDEX)
        names = without_optimizer(entries)
        tree = unflattened({paths.get(name) or _split_container(name, names): entries[name] for name in names})
        beside = {LIGHTNING: ""} if _is_of_lightning(folder) else {}
        _, tensors = find_models(beside | tree)
        found = _with_layers_apart(_with_gates_joined(tensors))
        outlines = {name: entry.outline() for name, entry in found.items()}
        ends: dict[str, int] = {}
        for chunk in (chunk for entry in found.values() for chunk in entry.chunks):
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
    except CodeError as error:
        raise InputError(
            f"a distributed checkpoint is refused: its index contains {error}, and loading that may run code"
        ) from error
    except InputError as error:
        raise InputError(f"{folder} {error}") from error
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{folder / INDEX} is truncated or not the index of a distributed checkpoint") from error
    _check_files(folder, ends)
    files = tuple(folder / file for file in (INDEX, *sorted(ends)))
    return Checkpoint(outlines, lambda name: _read(folder, found[name]), files=files)


def _is_of_lightning(folder: Path) -> bool:
    """Return whether the other data of a checkpoint of Lightning is beside the tensors (sharded strategies)."""
    with suppress(Exception):  # there is none, or it is damaged
        content, _ = load_content(lambda: (folder / "meta.pt").open("rb"))
        return isinstance(content, Mapping) and LIGHTNING in content
    return False


def _split_container(name: str, names: list[str]) -> tuple[str, ...]:
    """Return the path for a flat name in an index without nesting; one container around all names is split off."""
    head, _, rest = name.partition(".")
    return (head, rest) if rest and all(other.startswith(f"{head}.") for other in names) else (name,)


def _with_gates_joined(found: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return the same entries, gate and up-projection as one, the gate above."""
    joined = {}
    for name, entry in found.items():
        match = _HALF.fullmatch(name)
        other = found.get(f"{match['whole']}_{'v' if match['half'] == 'w' else 'w'}") if match else None
        if match is None or other is None or other.shape != entry.shape or not entry.shape:
            joined[name] = entry
        elif match["half"] == "w":
            rows, *sides = entry.shape
            below = [replace(each, offsets=(each.offsets[0] + rows, *each.offsets[1:])) for each in other.chunks]
            joined[match["whole"]] = replace(entry, shape=(2 * rows, *sides), chunks=(*entry.chunks, *below))
    return joined


def _with_layers_apart(found: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return the same entries, with stacked layers split into single ones.

    All parameters of such layers have a first side of one size; those of a norm, which are vectors, have two sides.
    """
    layers_of = {name: match["layers"] for name in found if (match := _STACKED.fullmatch(name))}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, layers in layers_of.items():
        groups[layers].append(name)
    stacked = {layers for layers, names in groups.items() if _are_stacked({name: found[name].shape for name in names})}
    apart: dict[str, _Entry] = {}
    for name, entry in found.items():
        layers = layers_of.get(name, "")
        if layers not in stacked:
            apart[name] = entry
        elif name == groups[layers][0]:
            for number in range(entry.shape[0]):
                for each in groups[layers]:
                    apart[f"{layers}.{number}{each.removeprefix(layers)}"] = _layer_of(found[each], number)
    return apart


def _layer_of(entry: _Entry, layer: int) -> _Entry:
    chunks = tuple(chunk for chunk in entry.chunks if chunk.has_layer(layer))
    return replace(entry, shape=entry.shape[1:], chunks=chunks, layer=layer)


def _are_stacked(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    sizes = {shape[0] if shape else 0 for shape in shapes.values()}
    has_norms = any(len(shape) == 2 and "norm" in name for name, shape in shapes.items())
    are_few = max(sizes, default=0) <= _MOST_LAYERS
    return len(sizes) == 1 and are_few and has_norms and any(len(shape) > 2 for shape in shapes.values())


def _load_index(index: Path) -> tuple[dict[str, _Entry], dict[str, tuple[Any, ...]]]:
    """Return the tensors of an index by their flat names, and the path of each in the dictionary that was saved."""
    with index.open("rb") as file:
        content = parse(file, BUILDERS)
    state = content.state if isinstance(content, Call) else {}
    places: dict[tuple[str, tuple[int, ...]], _Chunk] = {}
    for key, place in state["storage_data"].items():
        where, offsets = place.state, tuple(key.state.get("offset") or ())
        places[key.state["fqn"], offsets] = _Chunk(
            offsets, str(where["relative_path"]), where["offset"], where["length"]
        )
        if where.get("transform_descriptors"):
            raise InputError("is compressed, which is not read")
    entries = {}
    for name, entry in state["state_dict_metadata"].items():
        if entry.name != f"{_METADATA}TensorStorageMetadata":
            continue
        dtype, parts = _dtype_in(entry.state["properties"]), (chunk.state for chunk in entry.state["chunks"])
        chunks = [replace(places[name, tuple(part["offsets"])], shape=tuple(part["sizes"])) for part in parts]
        entries[str(name)] = _Entry(tuple(entry.state["size"]), dtype, tuple(chunks))
    planner = state.get("planner_data")
    paths = (
        {name: path for name, path in planner.items() if isinstance(path, tuple)} if isinstance(planner, dict) else {}
    )
    return entries, paths


def _dtype_in(properties: Call) -> torch.dtype:
    state = properties.state
    return dtype_of(state["dtype"] if isinstance(state, Mapping) else state[0])


def _check_files(folder: Path, ends: Mapping[str, int]) -> None:
    """Raise for files that are missing or end too early; `ends` has the least number of bytes of each."""
    missing = [name for name in ends if "/" in name or not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(ends)} files with its tensors, such as {missing[0]}: "
            "the checkpoint is incomplete, or was not written by all ranks"
        )
    for name, end in ends.items():
        size = (folder / name).stat().st_size
        if size < end:
            raise InputError(
                f"{folder} is incomplete: {name} has {size} bytes, and its index lists tensors up to byte {end}. "
                "Copy it again, or pass an earlier checkpoint"
            )


def _read(folder: Path, entry: _Entry) -> Tensor:
    if len(entry.chunks) == 1:
        return _read_chunk(folder, entry.chunks[0], entry.layer)
    chunks = {chunk.offsets: chunk for chunk in entry.chunks if 0 not in chunk.shape}  # one of several replicas
    sides = slice(0 if entry.layer is None else 1, None)
    if sum(math.prod(chunk.shape[sides]) for chunk in chunks.values()) != math.prod(entry.shape):
        raise InputError(f"{folder} is damaged: the parts of a tensor of shape {entry.shape} do not add up to it")
    whole = torch.empty(entry.shape, dtype=entry.dtype)
    for chunk in chunks.values():
        part = _read_chunk(folder, chunk, entry.layer)
        places = zip(chunk.offsets[sides], part.shape, strict=True)
        whole[tuple(slice(start, start + size) for start, size in places)] = part
    return whole


def _read_chunk(folder: Path, chunk: _Chunk, layer: int | None) -> Tensor:
    """Read a chunk, or one layer of it."""
    path = folder / chunk.file
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if not 0 <= chunk.start <= chunk.start + chunk.length <= size:
            raise InputError(
                f"{path} is truncated or damaged: a tensor in it should end at byte {chunk.start + chunk.length}"
            )
    try:
        tensor, storages = load_content(partial(open_part, path, chunk.start, chunk.length))
        whole: Tensor = tensor.load(storages.read)
    except Exception as error:
        raise InputError(f"{path} is truncated or damaged: {error}") from error
    return whole if layer is None else whole[layer - chunk.offsets[0]]
