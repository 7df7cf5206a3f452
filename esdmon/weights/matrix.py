"""`Matrix`: a handle on one weight, in the one form that all kinds of layers are brought to.

The form is a stack (slices, rows, columns): a linear layer is one slice, a convolution one for each kernel position,
a block of experts one for each expert. Rows are outputs where the layer says so; the spectrum does not ask. The handle
reads the live weight each time, so it sees what the optimizer made of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from esdmon.records import Status


@dataclass(frozen=True, slots=True)
class Matrix:
    """Where a weight is, and how it becomes a stack of matrices."""

    name: str
    """Unique in the model: the module's canonical name, or the parameter's where it is no `weight`; `/part` behind."""
    read: Callable[[], Tensor]
    """The weight as it is now; it may require grad."""
    to_stack: Callable[[Tensor], Tensor]
    """The weight as (slices, rows, columns); a view where it can be."""
    made_of: Callable[[], tuple[Tensor, ...]] | None = None
    """The parameters that the weight is computed from; None where it is one itself."""
    outline: Callable[[], Tensor] | None = None
    """A tensor of the weight's shape, which may hold no numbers; None where reading costs nothing."""
    on_request: str = ""
    """Why it is read only where `layers=` names it; empty for what is read by default."""
    detail: bool = False
    """A second look at what is read as a whole anyway: a single head, say. Only a pattern with its `/part` names it."""
    view: str = "weight"
    """What is read: weight, base, lora-delta, merged or difference."""
    aliases: tuple[str, ...] = ()
    """The other names of a weight that is tied."""

    def parameters(self) -> tuple[Tensor, ...]:
        """The model's own tensors behind this weight."""
        return (self.read(),) if self.made_of is None else self.made_of()

    def stack_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns), without touching a number."""
        outline = (self.outline or self.read)()
        slices, rows, columns = self.to_stack(torch.empty(outline.shape, device="meta")).shape
        return slices, rows, columns

    def is_named_by(self, pattern: str) -> bool:
        """Whether an fnmatch pattern names it: by any of its names, and a detail by its `/part` as well."""
        if not self.detail:
            return any(fnmatchcase(name, pattern) for name in (self.name, *self.aliases))
        whole, _, part = self.name.rpartition("/")
        pattern_whole, slash, pattern_part = pattern.rpartition("/")
        return bool(slash) and fnmatchcase(whole, pattern_whole) and fnmatchcase(part, pattern_part)


class UnreadableError(Exception):
    """A weight that gives no spectrum: never the user's fault, always a status and a reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
