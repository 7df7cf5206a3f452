"""Read files of `torch.save` with torch's weights-only loader, which runs no code of the file."""

import gc
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.weights.checkpoint.mapping import CONTAINERS, Checkpoint, outlines_of

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
MAX_RESIDENT = 1 << 24
"""Bytes that may stay in memory after they were read: from then on a mapped file is mapped again."""
_ZIP = b"PK\x03\x04"


def open_torch_file(path: Path) -> Checkpoint:
    """Open a file that `torch.save` wrote: a state dict, or a training state that holds one.

    Raises:
        InputError: for a damaged file, TorchScript, Python objects besides the tensors, or no tensors.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip:
        load = partial(_load_weights, path, mmap=True)
        tensors = load()
        return Checkpoint(outlines_of(tensors), _MappedFile(load).read)
    tensors = _load_weights(path, mmap=False)  # torch before 1.6 wrote files that cannot be mapped
    return Checkpoint(outlines_of(tensors), tensors.__getitem__)


def _load_weights(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript, which is refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, str(error)) from error
    except OSError:
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            msg = f"{path} is a TorchScript archive, which contains code. Save the model's state_dict() instead"
        else:
            msg = f"{path} is truncated or not a torch checkpoint"
        raise InputError(msg) from error
    found = _find_weights(content)
    if not found:
        keys = f"; its keys are {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        raise InputError(f"{path} contains no named tensors{keys}")
    return found


def _unpickling_error(path: Path, message: str) -> InputError:
    named = re.search(r"GLOBAL ([\w.]+\w) ", message)
    if named is None:
        return InputError(f"{path} is truncated or not a torch checkpoint")
    return InputError(
        f"{path} is refused: it contains Python objects ({named[1]}) besides its tensors, and loading those runs code. "
        "Save the model's state_dict() alone"
    )


def _find_weights(content: object) -> dict[str, Tensor]:
    """Return the tensors of the model by name, without what a training script saved besides them."""
    if not isinstance(content, Mapping):
        return {}
    for key in CONTAINERS:
        inside = _find_weights(content.get(key))
        if inside:
            return inside
    own = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if own:
        return own
    nested: dict[str, Tensor] = {}
    for key, part in content.items():
        if "optim" not in str(key):
            nested |= {f"{key}.{name}": value for name, value in _find_weights(part).items()}
    return nested


@final
class _MappedFile:
    """Reads tensors of a memory-mapped file, and maps it again after `MAX_RESIDENT` bytes to release them."""

    def __init__(self, load: Callable[[], dict[str, Tensor]]) -> None:
        self._load = load
        self._tensors: dict[str, Tensor] | None = None
        self._bytes_read = 0

    def read(self, name: str) -> Tensor:
        """Return one tensor, which keeps the file mapped as long as it lives."""
        if self._tensors is None:
            self._tensors, self._bytes_read = self._load(), 0
        tensor = self._tensors[name]
        self._bytes_read += tensor.nbytes
        if self._bytes_read > MAX_RESIDENT:
            self._tensors = None
            gc.collect()  # the loader's objects form cycles that hold the file
        return tensor
