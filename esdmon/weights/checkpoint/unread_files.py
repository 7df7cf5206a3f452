"""List the other files in a folder of weights: the weights that were not read, and hints if nothing can be read."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from esdmon.records.table import natural_key
from esdmon.weights.checkpoint import distributed
from esdmon.weights.checkpoint.formats import NOT_WEIGHTS, SUFFIXES, opener_of

MEGATRON_FILE = "model_optim_rng.pt"
_RUN = "esdmon.jsonl"
_OPTIMIZER = re.compile(r"optim(izer)?s?(_\d+)?")
_DEEPEST = 3  # depth, and largest number, of inner folders that are searched for a hint; our choice
_MOST_FOLDERS = 1000


def unread_beside(files: Iterable[Path], folder: Path) -> list[str]:
    """Return the other files with weights in a folder from which these files were read.

    Returns:
        Paths relative to the folder: other files in it except states of optimizers and the like, and inner folders with
        weights of which none was read.
    """
    read = set(files)
    # Beside an index are other data than tensors.
    read |= {index.with_name(name) for index in read if index.name == distributed.INDEX for name in distributed.BESIDE}
    places = {folder, *(file.parent for file in read)}
    with suppress(OSError):  # a folder cannot be listed
        beside = [path for place in places for path in place.iterdir() if is_weights(path) and path not in read]
        beside = [path for path in beside if path.name == distributed.INDEX or opener_of(path)]
        inside = [path for path in _folders_with_weights(folder) if path not in places]
        return sorted((str(path.relative_to(folder)) for path in (*inside, *beside)), key=natural_key)
    return []


def hint_for(folder: Path) -> str:
    """Return a hint: which inner folder to pass, or the command that reads a run."""
    inside = last_inside(folder)
    if inside:
        return f". Pass one of its folders, such as {inside}"
    is_of_a_run = (folder / _RUN).is_file()
    return f". It has the readings of a run, {_RUN}: use esdmon report or esdmon tail for those" if is_of_a_run else ""


def last_inside(folder: Path) -> str:
    """Return the last folder inside that has weights, by the numbers in its path; empty without any."""
    inside = (str(path.relative_to(folder)) for path in _folders_with_weights(folder))
    return max(inside, key=natural_key, default="")


def _folders_with_weights(folder: Path) -> Iterator[Path]:
    """Iterate over the folders inside, to a depth of three, that contain files with the names of weights."""
    level, seen = [folder], 0
    for _ in range(_DEEPEST):
        level = [path for each in level for path in folders_in(each)]
        seen += len(level)
        if seen > _MOST_FOLDERS:
            return
        yield from (path for path in level if _has_weights(path))


def _has_weights(folder: Path) -> bool:
    """Return whether a folder has files of weights, other than those of an incomplete distributed checkpoint."""
    files = list(folder.iterdir())
    is_incomplete = any(path.suffix == distributed.SUFFIX for path in files) and folder / distributed.INDEX not in files
    return not is_incomplete and any(map(is_weights, files))


def folders_in(folder: Path) -> list[Path]:
    """Return the inner folders, without hidden ones and those with only the state of an optimizer."""
    with suppress(OSError):  # it cannot be listed
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [path for path in folders if not _OPTIMIZER.fullmatch(path.name)]
    return []


def is_weights(path: Path) -> bool:
    """Return whether a file is named like a file of weights, or like an index of shards."""
    is_named_so = path.suffix.lower() in SUFFIXES and not NOT_WEIGHTS.search(path.name.lower())
    return path.name in (distributed.INDEX, MEGATRON_FILE) or (is_named_so and path.is_file())
