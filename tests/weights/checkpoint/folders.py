"""Write folders of checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def files(folder: Path, content: dict[str, Any], index: dict[str, str] | None = None) -> Path:
    """Write files of weights, and an index."""
    for name, tensors in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def w(value: float = 1.0) -> Tensor:
    return torch.full((20, 30), value)
