"""Read `.safetensors` files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import InputError, MissingExtraError
from esdmon.weights.checkpoint.mapping import Checkpoint

SUFFIX = ".safetensors"
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


def open_safetensors(path: Path) -> Checkpoint:
    """Open a `.safetensors` file.

    Raises:
        InputError: for a damaged file, or where the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError(str(path), "safetensors", "scan") from error
    try:
        with safe_open(path, framework="pt") as file:
            outlines = {name: _outline(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 -- not a mapping
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error

    def read(name: str) -> Tensor:
        # Opened for each tensor: closing the file releases the memory of what was read.
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return Checkpoint(outlines, read)


def _outline(tensor: Any) -> Tensor:
    return torch.empty(tensor.get_shape(), dtype=_DTYPES.get(tensor.get_dtype(), torch.uint8), device="meta")
