"""`Matrix`: a handle on one weight, in the one form that all kinds of layers are brought to.

The form is a stack (slices, rows, columns): a linear layer is one slice, a convolution one for each kernel position.
Rows are outputs where the layer says so; the spectrum does not ask. The handle reads the live weight each time, so it
sees what the optimizer made of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    on_request: str = ""
    """Why it is read only where `layers=` names it; empty for what is read by default."""

    def parameters(self) -> tuple[Tensor, ...]:
        """The model's own tensors behind this weight."""
        return (self.read(),) if self.made_of is None else self.made_of()


class UnreadableError(Exception):
    """A weight that gives no spectrum: never the user's fault, always a status and a reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
