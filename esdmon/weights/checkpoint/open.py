"""Find out what kind of checkpoint a path is, and open it. Nothing in a file is ever executed."""

import os
from pathlib import Path

from esdmon.errors import InputError
from esdmon.weights.checkpoint import distributed, huggingface, safetensors, torch_file
from esdmon.weights.checkpoint.mapping import Checkpoint, join_checkpoints

_SUFFIXES = (*torch_file.SUFFIXES, safetensors.SUFFIX)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint file, a Hugging Face folder, or a folder of torch's distributed checkpoints.

    Raises:
        InputError: where the path does not exist, is damaged, of an unknown kind, or contains Python objects.
    """
    place = Path(path)
    try:
        checkpoint = _open_folder(place) if place.is_dir() else _open_file(place)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}") from error
    if not checkpoint.outlines:
        raise InputError(f"{place} contains no tensors")
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    if size == 0:
        raise InputError(f"{path} is empty")
    if path.name in huggingface.INDEXES:
        return _open_shards(path)
    if path.suffix == safetensors.SUFFIX:
        return safetensors.open_safetensors(path)
    if path.suffix in torch_file.SUFFIXES:
        return torch_file.open_torch_file(path)
    if path.name == distributed.INDEX or path.suffix == distributed.SUFFIX:
        return _open_folder(path.parent)
    raise InputError(f"{path} is of an unknown kind. Pass a {', '.join(_SUFFIXES)} file, or a folder with one of them")


def _open_folder(folder: Path) -> Checkpoint:
    for name in huggingface.INDEXES:
        if (folder / name).exists():
            return _open_shards(folder / name)
    for name in huggingface.WEIGHTS:
        if (folder / name).exists():
            return _open_file(folder / name)
    if (folder / distributed.INDEX).exists():
        return distributed.open_distributed(folder)
    return _open_only_files(folder)


def _open_only_files(folder: Path) -> Checkpoint:
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    shards = [path for path in files if path.suffix == safetensors.SUFFIX]
    if shards or len(files) == 1:
        return join_checkpoints([_open_file(path) for path in shards or files])
    if files:
        raise InputError(
            f"{folder} contains {len(files)} checkpoints. Pass one of them, such as {files[0].name} or {files[-1].name}"
        )
    raise InputError(f"{folder} contains no checkpoint: neither a {', '.join(_SUFFIXES)} file nor {distributed.INDEX}")


def _open_shards(index: Path) -> Checkpoint:
    return join_checkpoints([_open_file(path) for path in huggingface.shard_files(index)])
