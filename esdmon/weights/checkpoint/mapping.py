"""Define `Checkpoint`, a mapping of names to tensors that reads one tensor at a time from disk."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from esdmon.errors import InputError, UnreadableError
from esdmon.records.table import shorten

Model = nn.Module | Mapping[str, Tensor]
_LONGEST = 200  # characters of a reason; our choice


def short_reason(error: object) -> str:
    """Return the text of an error in one line of at most 200 characters; a library may quote long content."""
    return shorten(" ".join(str(error).split()), _LONGEST)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint; each access reads the tensor from disk."""

    outlines: Mapping[str, Tensor]
    """Tensors on the meta device with the shapes and dtypes of those on disk. Names of one shared tensor have one
    outline."""
    read: Callable[[str], Tensor]
    """Returns the tensor of a name, on the CPU; `checkpoint[name]` also checks it."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reasons why tensors cannot be read, by name."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of `config.json` or `adapter_config.json` beside the weights, or of their own header."""
    module: nn.Module | None = None
    """The model with its weights in memory, if the file contains the whole model."""
    files: tuple[Path, ...] = ()
    """The files that hold the tensors."""

    @property
    def model(self) -> Model:
        """Return the object to read: the whole model in the file, or else this mapping."""
        return self if self.module is None else self.module

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor from disk to the CPU.

        Raises:
            KeyError: if there is no tensor of that name.
            UnreadableError: for a tensor of an unsupported kind, and if its numbers are missing or damaged.
        """
        if name not in self.outlines:
            raise KeyError(name)
        try:
            tensor = self.read(name)
        except UnreadableError:
            raise
        except Exception as error:
            reason = error if isinstance(error, InputError) else f"it cannot be read from the file: {error}"
            raise UnreadableError("failed", short_reason(reason)) from error
        if tensor.shape != self.outlines[name].shape:
            shapes = f"{tuple(tensor.shape)}, and its index says {tuple(self.outlines[name].shape)}"
            raise UnreadableError("failed", f"the file is damaged: it has the shape {shapes}")
        return tensor

    def __contains__(self, name: object) -> bool:
        """Return whether there is a tensor of that name, without reading it."""
        return name in self.outlines

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.outlines)

    def with_config(self, config: Mapping[str, Any]) -> "Checkpoint":
        """Return the same tensors with the settings of a file beside them, or else of their own header."""
        return replace(self, config=config or self.config)


def checkpoint_of(module: nn.Module) -> Checkpoint:
    """Return the parameters and buffers of a module, and the module itself."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    return Checkpoint(tensors, tensors.__getitem__, module=module)


def join_checkpoints(parts: Mapping[str, tuple[Checkpoint, str]]) -> Checkpoint:
    """Return one checkpoint of tensors from several.

    Args:
        parts: name of a tensor -> the checkpoint that holds it, and its name there.
    """
    checkpoints = {id(part): part for part, _ in parts.values()}
    return Checkpoint(
        {name: part.outlines[inside] for name, (part, inside) in parts.items()},
        lambda name: parts[name][0][parts[name][1]],
        unreadable={
            name: part.unreadable[inside] for name, (part, inside) in parts.items() if inside in part.unreadable
        },
        files=tuple(file for part in checkpoints.values() for file in part.files),
    )
