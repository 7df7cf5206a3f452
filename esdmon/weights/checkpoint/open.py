"""Open a checkpoint of any kind. No code in a file is ever executed."""

import os
from pathlib import Path

from esdmon.errors import InputError
from esdmon.records import Origin
from esdmon.weights.checkpoint import distributed
from esdmon.weights.checkpoint.folder import open_folder, open_index, read_config
from esdmon.weights.checkpoint.formats import open_file
from esdmon.weights.checkpoint.mapping import Checkpoint, Model
from esdmon.weights.checkpoint.ranks import check_whole
from esdmon.weights.checkpoint.unread_files import unread_beside


def open_model(
    model: Model | str | os.PathLike[str], *, is_reference: bool = False
) -> tuple[Model, tuple[Origin, ...]]:
    """Return a model, and the files that it is read from; none if it is in memory.

    Args:
        model: a module, a mapping of names to tensors, or the path of a checkpoint, which is opened.
        is_reference: whether it is the state with W₀.

    Raises:
        InputError: as `open_checkpoint`.
    """
    if not isinstance(model, str | os.PathLike):
        return model, ()
    checkpoint, path = open_checkpoint(model), Path(model)
    folder = path if path.is_dir() else path.parent
    files = tuple(str(file.relative_to(folder)) for file in checkpoint.files)
    unread = unread_beside(checkpoint.files, folder) if path.is_dir() else ()  # else the user has chosen the file
    origin = Origin(str(path), files, tuple(unread), is_reference=is_reference)
    return checkpoint.model, (origin,)


def opened(model: Model | str | os.PathLike[str]) -> Model:
    """Return a model, opened if it is the path of a checkpoint.

    Raises:
        InputError: as `open_checkpoint`.
    """
    return open_checkpoint(model).model if isinstance(model, str | os.PathLike) else model


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a file of weights, an index of shards, or a folder with either.

    Raises:
        InputError: if the path does not exist, or the file is damaged, of an unknown kind, or would run code.
    """
    place = Path(path)
    try:
        checkpoint = open_folder(place) if place.is_dir() else _open_file(place)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}") from error
    if not checkpoint.outlines:
        raise InputError(f"{place} contains no tensors, or only those of an optimizer")
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    if path.name == distributed.INDEX or path.suffix == distributed.SUFFIX:
        return open_folder(path.parent)
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} is a pipe or a device, but weights are read from any position of a file. Write it to a file first"
        )
    check_whole(path)
    checkpoint = open_file(path)
    checkpoint = open_index(path) if checkpoint is None else checkpoint
    return checkpoint.with_config(read_config(path.parent))
