"""Read `.safetensors` files."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import InputError, MissingExtraError
from esdmon.records.table import natural_key
from esdmon.weights.checkpoint.containers import without_optimizer
from esdmon.weights.checkpoint.mapping import Checkpoint, short_reason

SUFFIX = ".safetensors"
_OFFSETS = "DCP_SHARDING_INFO"
_ADAPTER = "lora_adapter_metadata"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "BOOL": torch.bool,
}


def open_safetensors(path: Path) -> Checkpoint:
    """Open a `.safetensors` file. The format keeps no order: its tensors are sorted by name, numbers as numbers.

    Raises:
        InputError: for a damaged file, or where the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError(str(path), "safetensors", "scan") from error
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(without_optimizer(file.keys()), key=natural_key)
            outlines = {name: _outline(file.get_slice(name)) for name in names}
            header = file.metadata() or {}
    except (SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {short_reason(error)}") from error
    if _is_part(header):
        raise InputError(
            f"{path} is one part of a model that is split over ranks, which is not read: "
            "join all parts first, with torch's consolidate_safetensors_files"
        )

    def read(name: str) -> Tensor:
        # Opened for each tensor: closing the file releases the memory of what was read.
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return Checkpoint(outlines, read, config=_settings_in(header))


def _is_part(metadata: dict[str, str]) -> bool:
    """Return whether a header says that a tensor in the file begins behind the first element of the whole.

    torch's `HuggingFaceStorageWriter` writes it where each rank saves a file. That of rank 0 says nothing.
    """
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        return any(any(tensor["saved_offsets"]) for tensor in json.loads(metadata.get(_OFFSETS, "{}")).values())
    return False


def _settings_in(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the settings of adapters that diffusers writes into a header; empty without any."""
    with suppress(ValueError, RecursionError):
        settings = json.loads(metadata.get(_ADAPTER, "{}"))
        return settings if isinstance(settings, dict) else {}
    return {}


def _outline(tensor: Any) -> Tensor:
    return torch.empty(tensor.get_shape(), dtype=_DTYPES.get(tensor.get_dtype(), torch.uint8), device="meta")
