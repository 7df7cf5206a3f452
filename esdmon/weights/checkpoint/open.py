"""Checkpoints on disk as mappings of names to tensors, of which one tensor at a time is in memory.

Nothing in a file is run: `.pt` files are read by torch's weights-only loader, and the index of a distributed
checkpoint, which is a pickle too, only where it holds nothing but descriptions of tensors.
"""

import gc
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from esdmon.errors import InputError, MissingExtraError

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_PICKLED = (".pt", ".pth", ".ckpt", ".bin")
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
_KEPT = 1 << 24  # bytes that may be read from a mapped file before it is mapped anew, as what was read stays resident
_ZIP = b"PK\x03\x04"


@final
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each read from disk whenever it is asked for."""

    def __init__(self, outlines: dict[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.outlines: Mapping[str, Tensor] = outlines
        """Tensors of the same shapes and dtypes without numbers; one for several names of one tensor."""
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        if name not in self.outlines:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Whether it holds a tensor of that name, which is not read for that."""
        return name in self.outlines

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """How many names."""
        return len(self.outlines)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint file, a folder of Hugging Face, or a folder of torch's distributed checkpoints.

    Raises:
        InputError: for what is not there, damaged, of another kind, or holds Python objects beside its tensors.
    """
    place = Path(path)
    try:
        checkpoint = _open_folder(place) if place.is_dir() else _open_file(place)
    except OSError as error:
        msg = f"{place} cannot be read: {error.strerror or error}"
        raise InputError(msg) from error
    if not checkpoint.outlines:
        msg = f"{place} holds no tensors"
        raise InputError(msg)
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        msg = f"there is no file or folder {path}"
        raise InputError(msg) from error
    if size == 0:
        msg = f"{path} is empty"
        raise InputError(msg)
    if path.name in _INDEXES:
        return _sharded(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in _PICKLED:
        return _torch_file(path)
    if path.name == ".metadata" or path.suffix == ".distcp":
        return _open_folder(path.parent)
    msg = f"{path} is none of {', '.join((*_PICKLED, '.safetensors'))}, nor a folder with one of them"
    raise InputError(msg)


def _open_folder(folder: Path) -> Checkpoint:
    for name in _INDEXES:
        if (folder / name).exists():
            return _sharded(folder / name)
    for name in _WHOLE:
        if (folder / name).exists():
            return _open_file(folder / name)
    if (folder / ".metadata").exists():
        return _distributed(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (*_PICKLED, ".safetensors"))
    several = [path for path in files if path.suffix == ".safetensors"]
    if several or len(files) == 1:
        return _joined([_open_file(path) for path in several or files])
    if files:
        msg = f"{folder} holds {len(files)} checkpoints: give one of them, {files[0].name} or {files[-1].name}, say"
        raise InputError(msg)
    msg = f"{folder} holds no checkpoint: no {', '.join((*_PICKLED, '.safetensors'))} file and no .metadata"
    raise InputError(msg)


def _sharded(index: Path) -> Checkpoint:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{index} is damaged: it has no weight_map of names to files"
        raise InputError(msg) from error
    missing = sorted(str(shard) for shard in shards if not (index.parent / str(shard)).exists())
    if missing:
        msg = f"{index} names {len(missing)} files that are not there: {missing[0]}"
        raise InputError(msg)
    return _joined([_open_file(index.parent / shard) for shard in sorted(shards)])


def _joined(parts: Sequence[Checkpoint]) -> Checkpoint:
    where = {name: part for part in parts for name in part}
    return Checkpoint({name: part.outlines[name] for name, part in where.items()}, lambda name: where[name][name])


def _safetensors(path: Path) -> Checkpoint:
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError(str(path), "safetensors", "scan") from error
    try:
        with safe_open(path, framework="pt") as file:
            outlines = {name: _outline(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 -- not a mapping
    except SafetensorError as error:
        msg = f"{path} is truncated, or no safetensors file: {error}"
        raise InputError(msg) from error

    def read(name: str) -> Tensor:
        # Opened for each tensor, so that what was read is given back with it.
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return Checkpoint(outlines, read)


def _outline(tensor: Any) -> Tensor:
    return torch.empty(tensor.get_shape(), dtype=_DTYPES.get(tensor.get_dtype(), torch.uint8), device="meta")


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


def _torch_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP
    if mapped:
        load = partial(_weights_of, path, mmap=True)
        tensors = load()
        return Checkpoint(_outlines(tensors), _Mapped(load).read)
    tensors = _weights_of(path, mmap=False)  # a file of torch before 1.6: it cannot be mapped
    return Checkpoint(_outlines(tensors), tensors.__getitem__)


def _weights_of(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript, which is refused below
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except OSError:
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            msg = f"{path} is a TorchScript archive, which is code: save the model's state_dict() instead"
        else:
            msg = f"{path} is truncated, or no checkpoint of torch"
        raise InputError(msg) from error
    found = _weights_in(tree)
    if not found:
        keys = f": its keys are {', '.join(map(str, list(tree)[:8]))}" if isinstance(tree, Mapping) else ""
        msg = f"{path} holds no tensors by name{keys}"
        raise InputError(msg)
    return found


def _refusal(path: Path, message: str) -> InputError:
    named = re.search(r"GLOBAL ([\w.]+\w) ", message)
    if named is None:
        return InputError(f"{path} is truncated, or no checkpoint of torch")
    return InputError(
        f"{path} is refused: it holds Python objects ({named[1]}) beside its tensors, and loading those runs code. "
        "Save the model's state_dict() alone"
    )


def _weights_in(tree: object) -> dict[str, Tensor]:
    """The tensors of a model among what else a training script has saved beside them, by name."""
    if not isinstance(tree, Mapping):
        return {}
    for key in _CONTAINERS:
        inside = _weights_in(tree.get(key))
        if inside:
            return inside
    own = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
    if own:
        return own
    return {
        f"{key}.{name}": value
        for key, part in tree.items()
        if "optim" not in str(key)
        for name, value in _weights_in(part).items()
    }


def _outlines(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes and dtypes; one outline for the names that share a tensor."""
    by_place: dict[object, Tensor] = {}

    def outline(tensor: Tensor) -> Tensor:
        strided = tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() > 0
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if strided else id(tensor)
        return by_place.setdefault(place, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))

    return {name: outline(tensor) for name, tensor in tensors.items()}


@final
class _Mapped:
    """Reads tensors of a mapped file, which is given back after each 16 MB: what was read of it stays in memory."""

    def __init__(self, load: Callable[[], dict[str, Tensor]]) -> None:
        self._load = load
        self._tensors: dict[str, Tensor] | None = None
        self._passed = 0

    def read(self, name: str) -> Tensor:
        """One tensor, which keeps the file mapped as long as it lives."""
        if self._tensors is None:
            self._tensors, self._passed = self._load(), 0
        tensor = self._tensors[name]
        self._passed += tensor.nbytes
        if self._passed > _KEPT:
            self._tensors = None
            gc.collect()  # the loader's objects form cycles that hold the file
        return tensor


def _distributed(folder: Path) -> Checkpoint:
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415 -- a second to import
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    try:
        with (folder / ".metadata").open("rb") as file:
            entries = _CautiousUnpickler(file).load().state_dict_metadata
    except InputError:
        raise
    except OSError:
        raise
    except Exception as error:
        msg = f"{folder / '.metadata'} is truncated, or no index of a distributed checkpoint"
        raise InputError(msg) from error
    sizes = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    full_names = _without_container([name for name in sizes if "optim" not in name.partition(".")[0]])

    def read(name: str) -> Tensor:
        full = full_names[name]
        into = {full: torch.empty_like(sizes[full], device="cpu")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no process group is there: none is wanted
            load(into, storage_reader=FileSystemReader(folder), no_dist=True)
        if into[full].nbytes > _KEPT:
            gc.collect()  # the loader's objects form cycles that hold the tensor
        return into[full]

    return Checkpoint({name: sizes[full] for name, full in full_names.items()}, read)


def _without_container(names: Sequence[str]) -> dict[str, str]:
    """Names as the model has them -> as they are stored: without a `model.` that stands before all of them."""
    first = [key for key, _ in groupby(sorted(name.partition(".")[0] for name in names))]
    skip = len(first[0]) + 1 if len(first) == 1 and first[0] in _CONTAINERS else 0
    return {name[skip:]: name for name in names}


class _CautiousUnpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        known: Any = super().find_class(module, name) if module in _DESCRIPTIONS else None
        if known is not None and (isinstance(known, torch.dtype) or name in _DESCRIPTIONS[module]):
            return known
        msg = f"a distributed checkpoint is refused: its index holds {module}.{name}, and loading that may run code"
        raise InputError(msg)


_DESCRIPTIONS = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}
