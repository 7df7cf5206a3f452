"""Names and indexes of Hugging Face checkpoint folders."""

import json
from pathlib import Path

from esdmon.errors import InputError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that list which shard holds which tensor."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
"""Files that hold all tensors of a folder, the preferred ones first."""


def shard_files(index: Path) -> list[Path]:
    """Return the files that an index lists.

    Raises:
        InputError: where the index is damaged, or files are missing.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged: it has no weight_map of names to files") from error
    missing = sorted(str(name) for name in names if not (index.parent / str(name)).exists())
    if missing:
        raise InputError(f"{index} lists {len(missing)} files that do not exist, such as {missing[0]}")
    return [index.parent / name for name in sorted(names)]
