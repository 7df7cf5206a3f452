"""Define `Checkpoint`, a mapping of names to tensors that reads one tensor at a time from disk."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint; each access reads the tensor from disk.

    Args:
        outlines: tensors on the meta device with the shapes and dtypes of those on disk. Names of one shared tensor map
            to one outline.
        read: returns the tensor of a name, on the CPU.
        unreadable: reasons why tensors cannot be read, by name.
        config: content of `config.json` or `adapter_config.json` beside the weights, or of their own header.
        module: the model with its weights in memory, if the file contains the whole model.
        files: the files that hold the tensors.
    """

    def __init__(
        self,
        outlines: Mapping[str, Tensor],
        read: Callable[[str], Tensor],
        *,
        unreadable: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
        files: Iterable[Path] = (),
    ) -> None:
        self.outlines = outlines
        self.unreadable = unreadable or {}
        self.config = config or {}
        self.module = module
        self.files = tuple(files)
        self._read = read

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
            tensor = self._read(name)
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
        return self._copy(config or self.config, self.files)

    def with_files(self, files: Iterable[Path]) -> "Checkpoint":
        """Return the same tensors, with the files that hold them."""
        return self._copy(self.config, files)

    def _copy(self, config: Mapping[str, Any], files: Iterable[Path]) -> "Checkpoint":
        return Checkpoint(
            self.outlines, self._read, unreadable=self.unreadable, config=config, module=self.module, files=files
        )


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
        files=[file for part in checkpoints.values() for file in part.files],
    )
