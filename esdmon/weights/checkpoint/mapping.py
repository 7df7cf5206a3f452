"""`Checkpoint`: a mapping of names to tensors that reads one tensor at a time from disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Keys under which training scripts save the weights of a model."""


@final
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint; each access reads the tensor from disk.

    Args:
        outlines: tensors on the meta device with the shapes and dtypes of those on disk. Names of one shared tensor map
            to one outline.
        read: returns the tensor of a name, on the CPU.
    """

    def __init__(self, outlines: dict[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.outlines: Mapping[str, Tensor] = outlines
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor from disk to the CPU."""
        if name not in self.outlines:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a tensor of that name, without reading it."""
        return name in self.outlines

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.outlines)


def join_checkpoints(parts: Sequence[Checkpoint]) -> Checkpoint:
    """Return one checkpoint with the tensors of several; the last one wins where names are repeated."""
    part_of = {name: part for part in parts for name in part}
    outlines = {name: part.outlines[name] for name, part in part_of.items()}
    return Checkpoint(outlines, lambda name: part_of[name][name])


def outlines_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return outlines of tensors in memory; names that share a tensor get one outline."""
    by_storage: dict[object, Tensor] = {}

    def outline(tensor: Tensor) -> Tensor:
        strided = tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() > 0
        storage = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if strided else id(tensor)
        return by_storage.setdefault(storage, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))

    return {name: outline(tensor) for name, tensor in tensors.items()}
