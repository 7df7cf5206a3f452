"""Read GGUF files of llama.cpp; packed weights are unpacked to ordinary numbers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import InputError, MissingExtraError
from esdmon.records.table import natural_key
from esdmon.weights.checkpoint.mapping import Checkpoint, short_reason

_MAGIC = b"GGUF"
SUFFIX = ".gguf"
_DTYPES = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are numbers of torch, besides float32; all others stand for float32 here."""


def is_gguf(first: bytes) -> bool:
    """Return whether a file with these first bytes is a GGUF file."""
    return first.startswith(_MAGIC)


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file. Its tensors keep the names of llama.cpp, such as `blk.0.attn_q.weight`.

    Raises:
        InputError: for a damaged file, or where the package gguf is missing.
    """
    try:
        import gguf  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError(str(path), "gguf", "gguf") from error
    try:
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        outlines = {name: _outline(tensors[name]) for name in sorted(tensors, key=natural_key)}
    except Exception as error:  # of many kinds, for files with changed bytes
        raise InputError(f"{path} is truncated or not a GGUF file: {short_reason(error)}") from error

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        return torch.tensor(numbers, dtype=outlines[name].dtype).reshape(outlines[name].shape)

    return Checkpoint(outlines, read)


def _outline(tensor: Any) -> Tensor:
    """Return a tensor of the shape that torch gives to it: the file lists the sides from the last one on."""
    sides = [int(side) for side in reversed(tensor.shape)]
    return torch.empty(sides, dtype=_DTYPES.get(tensor.tensor_type.name, torch.float32), device="meta")
