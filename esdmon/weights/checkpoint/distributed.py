"""Read folders of torch's distributed checkpoints.

Their index is a pickle; it is loaded only where it contains nothing but descriptions of tensors.
"""

import gc
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.weights.checkpoint.mapping import CONTAINERS, Checkpoint
from esdmon.weights.checkpoint.torch_file import MAX_RESIDENT

INDEX = ".metadata"
SUFFIX = ".distcp"
_ALLOWED_CLASSES = {
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


def open_distributed(folder: Path) -> Checkpoint:
    """Open a folder that `torch.distributed.checkpoint.save` wrote.

    Raises:
        InputError: for a damaged index, or one that contains more than descriptions of tensors.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415 -- a second to import
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    outlines = _load_outlines(folder / INDEX)
    stored_names = _strip_container([name for name in outlines if "optim" not in name.partition(".")[0]])

    def read(name: str) -> Tensor:
        stored = stored_names[name]
        into = {stored: torch.empty_like(outlines[stored], device="cpu")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group: none is needed
            load(into, storage_reader=FileSystemReader(folder), no_dist=True)
        if into[stored].nbytes > MAX_RESIDENT:
            gc.collect()  # the loader's objects form cycles that hold the tensor
        return into[stored]

    return Checkpoint({name: outlines[stored] for name, stored in stored_names.items()}, read)


def _load_outlines(index: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415 -- a second to import

    try:
        with index.open("rb") as file:
            entries = _IndexUnpickler(file).load().state_dict_metadata
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{index} is truncated or not the index of a distributed checkpoint") from error
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _strip_container(names: Sequence[str]) -> dict[str, str]:
    """Map the model's names to the stored ones, which may all begin with the same container, such as `model.`."""
    containers = {name.partition(".")[0] for name in names}
    prefix = containers.pop() if len(containers) == 1 else ""
    skip = len(prefix) + 1 if prefix in CONTAINERS else 0
    return {name[skip:]: name for name in names}


class _IndexUnpickler(pickle.Unpickler):
    """Unpickle descriptions of tensors, and refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        known: Any = super().find_class(module, name) if module in _ALLOWED_CLASSES else None
        if known is not None and (isinstance(known, torch.dtype) or name in _ALLOWED_CLASSES[module]):
            return known
        raise InputError(
            f"a distributed checkpoint is refused: its index contains {module}.{name}, and loading that may run code"
        )
