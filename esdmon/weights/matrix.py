"""`Matrix`: a handle on one weight, in the one form that all kinds of layers are brought to.

The form is a stack (slices, rows, columns): a linear layer is one slice, a convolution one for each kernel position,
a block of experts one for each expert. Rows are outputs where the layer says so; the spectrum does not ask. The handle
reads the live weight each time, so it sees what the optimizer made of it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esdmon.isolation import describe
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
    unreadable: str = ""
    """Why there is nothing to read, where that is known beforehand, as of a shard; `read` raises it then."""
    probe: Callable[[int], Tensor] | None = None
    """At most so many numbers that move as the weight does, found without computing all of it: (count,), or a row for
    each of several factors. None where elements of the weight are taken."""
    _shapes: dict[torch.Size, tuple[int, int, int]] = field(init=False, default_factory=dict, compare=False, repr=False)

    def parameters(self) -> tuple[Tensor, ...]:
        """The model's own tensors behind this weight."""
        return (self.read(),) if self.made_of is None else self.made_of()

    def stack_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns), without touching a number.

        Raises:
            UnreadableError: where the weight is not of a shape that its layer can have.
        """
        return self.stack_shape_of((self.outline or self.read)())

    def stack_shape_of(self, weight: Any) -> tuple[int, int, int]:
        """The same for a weight that was read already; computed once for each shape that the weight has had."""
        if not isinstance(weight, Tensor):
            raise UnreadableError("skipped", f"its weight is {repr(weight)[:60]}, not a tensor")
        shape = weight.shape
        if shape not in self._shapes:
            self._shapes[shape] = self._stack_shape_of(shape)
        return self._shapes[shape]

    def _stack_shape_of(self, shape: torch.Size) -> tuple[int, int, int]:
        try:
            slices, rows, columns = self.to_stack(torch.empty(shape, device="meta")).shape
        except Exception as error:
            raise UnreadableError("skipped", _misfit(shape)) from error
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


def _misfit(shape: torch.Size) -> str:
    if shape.numel() == 0:
        return f"an empty weight of shape {tuple(shape)}, which ZeRO-3 leaves in the place of a shard: not read yet"
    if len(shape) == 1:
        return (
            f"of shape {tuple(shape)}, not the matrix of its layer: a shard of {shape.numel()} elements is not read yet"
        )
    return f"of shape {tuple(shape)}, which is not that of its layer"


def refused(
    matrix: Matrix,
    reason: str,
    *,
    parameters: tuple[Tensor, ...] | None = None,
    shape: tuple[int, int, int] = (0, 0, 0),
) -> Matrix:
    """Return the matrix as one that is known and cannot be read.

    Args:
        matrix: as it was found.
        reason: why, for its status.
        parameters: the model's tensors behind it, where the matrix does not know them.
        shape: of its stack, as far as it is known.
    """
    if parameters is None:
        parameters = ()
        with suppress(Exception):
            given: tuple[Any, ...] = matrix.parameters()
            parameters = tuple(each for each in given if isinstance(each, Tensor))
    behind = parameters
    return replace(
        matrix,
        read=partial(_refuse, reason),
        to_stack=_as_it_is,
        made_of=lambda: behind,
        outline=partial(torch.empty, shape, device="meta"),
        unreadable=reason,
        probe=None,
    )


def why_not(error: Exception) -> str:
    """Return the reason of a weight that cannot be read."""
    return error.reason if isinstance(error, UnreadableError) else describe(error)


def _refuse(reason: str) -> Tensor:
    raise UnreadableError("skipped", reason)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight
