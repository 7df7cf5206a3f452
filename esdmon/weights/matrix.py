"""Define `Matrix`: a handle on one weight, in the same form for all kinds of layers.

The form is a stack (slices, rows, columns): a linear layer is one slice, a convolution has a slice for each kernel
position, a block of experts one for each expert. Rows are outputs if the layer defines outputs; the spectrum does not
depend on the orientation.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.isolation import describe
from esdmon.records.table import matches
from esdmon.schedule.fragments import Region
from esdmon.weights import stacks
from esdmon.weights.non_weights import NESTED
from esdmon.weights.shard import Shard


@dataclass(frozen=True, slots=True)
class StackSize:
    """Size of the stack that a weight becomes."""

    slices: int
    rows: int
    columns: int
    n_elements: int
    """Number of elements in all slices."""
    n_eigenvalues: int
    """Number of eigenvalues of all slices: slices · min(rows, columns)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (slices, rows, columns)."""
        return self.slices, self.rows, self.columns


@dataclass(frozen=True, slots=True)
class Matrix:
    """A handle that reads the current value of one weight as a stack of matrices."""

    name: str
    """Unique in the model: the module's canonical name, or that of a parameter not called `weight`; then `/part`."""
    read: Callable[[], Tensor]
    """Returns the current weight; it may require grad."""
    to_stack: stacks.ToStack
    """Converts the weight to (slices, rows, columns); a view where possible."""
    made_of: Callable[[], tuple[Tensor, ...]] | None = None
    """Returns the parameters that the weight is computed from; None if the weight is a parameter itself."""
    outline: Callable[[], Tensor] | None = None
    """Returns a tensor of the weight's shape, which may be on the meta device; None where `read` costs nothing."""
    on_request: str = ""
    """Reason why the weight is read only if `layers=` names it; empty for a weight that is read by default."""
    detail: bool = False
    """True for a part of a weight that is read as a whole as well, such as one head; only patterns with a `/part` match
    it."""
    view: str = "weight"
    """The kind of matrix: weight, base, lora-delta, merged, difference, update, momentum, qk or ov."""
    aliases: tuple[str, ...] = ()
    """The other names of a tied weight."""
    unreadable: str = ""
    """Reason why the weight cannot be read, if it is known beforehand, such as for a shard; `read` raises it."""
    probe: Callable[[int], Tensor] | None = None
    """Returns at most that many numbers that change when the weight does, without computing all of it: (count,), or one
    row for each of several factors. None: elements of the weight are sampled."""
    core: Callable[[Tensor], Tensor] | None = None
    """Computes the stack whose spectrum is read, from the result of `to_stack` for a copy, in the thread that reads."""
    reference: Callable[[], Tensor] | None = None
    """Returns the original weight, of the same shape: W₀ of a difference, the base of a sum."""
    shards: tuple[tuple[Tensor, Shard], ...] = ()
    """For a weight that is sharded over ranks: its shards, each with its stand-in, a tensor of the whole shape on the
    meta device; see `esdmon.weights.outline`."""
    parameter_names: tuple[str, ...] = ()
    """Canonical names of the parameters of `shards`."""
    region: Region | None = None
    """Of one sharded parameter, the elements that the weight is; None where it is of several, or is computed."""
    _sizes: dict[torch.Size, StackSize] = field(init=False, default_factory=dict, compare=False, repr=False)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the model's own tensors behind this weight."""
        return (self.read(),) if self.made_of is None else self.made_of()

    def whole_parameters(self) -> tuple[Tensor, ...]:
        """Return tensors with the shapes of the whole parameters: stand-ins for sharded parameters."""
        return tuple(stand_in for stand_in, _ in self.shards) or self.parameters()

    @property
    def is_here(self) -> bool:
        """Return whether this rank holds all of the weight."""
        return all(shard.is_whole for _, shard in self.shards)

    @property
    def is_computed(self) -> bool:
        """Return whether the module computes the weight from its parameters, as by a parametrisation."""
        return self.view == "weight" and self.made_of is not None and not (self.shards or self.unreadable)

    @property
    def is_plain(self) -> bool:
        """Return whether the weight is a whole parameter that is read without any computation."""
        is_computed = self.made_of or self.outline or self.core or self.probe
        return not (is_computed or self.shards or self.unreadable)

    def size(self) -> StackSize:
        """Return the size of the stack without reading any element.

        It is computed once for each shape that the weight has had: the same object means the same shape.

        Raises:
            UnreadableError: if the shape of the weight does not fit its layer.
        """
        return self.size_for((self.outline or self.read)())

    def size_for(self, weight: Any) -> StackSize:
        """Return the size of the stack that `weight`, a value of this handle, becomes; see `size`."""
        if not isinstance(weight, Tensor):
            raise UnreadableError("skipped", f"its weight is {repr(weight)[:60]}, not a tensor")
        if weight.is_nested:
            raise UnreadableError("skipped", NESTED)
        size = self._sizes.get(weight.shape)
        if size is None:
            size = self._sizes[weight.shape] = self._compute_size(weight.shape)
        return size

    def stack_shape(self) -> tuple[int, int, int]:
        """Return (slices, rows, columns) without reading any element; see `size`."""
        return self.size().shape

    def _compute_size(self, shape: torch.Size) -> StackSize:
        try:
            slices, rows, columns = self.to_stack(torch.empty(shape, device="meta")).shape
        except Exception as error:
            raise UnreadableError("skipped", _misfit(shape)) from error
        return StackSize(slices, rows, columns, math.prod((slices, rows, columns)), slices * min(rows, columns))

    def is_named_by(self, pattern: str) -> bool:
        """Return whether an fnmatch pattern matches one of its names; a detail needs a match of its `/part` as well."""
        if not self.detail:
            return any(matches(name, pattern) for name in (self.name, *self.aliases))
        whole, _, part = self.name.rpartition("/")
        pattern_whole, slash, pattern_part = pattern.rpartition("/")
        return bool(slash) and matches(whole, pattern_whole) and matches(part, pattern_part)


def mark_unreadable(
    matrix: Matrix,
    reason: str,
    *,
    parameters: tuple[Tensor, ...] | None = None,
    shape: tuple[int, int, int] = (0, 0, 0),
) -> Matrix:
    """Return a handle on a weight that is known, but cannot be read.

    Args:
        matrix: the handle as it was found.
        reason: why the weight cannot be read; `read` raises `UnreadableError` with it.
        parameters: the model's tensors behind the weight; None asks `matrix` for them.
        shape: shape of the stack, as far as known.
    """
    behind = _tensors_behind(matrix) if parameters is None else parameters
    return replace(
        matrix,
        read=partial(_raise_unreadable, reason),
        to_stack=stacks.identity,
        made_of=lambda: behind,
        outline=partial(torch.empty, shape, device="meta"),
        unreadable=reason,
        probe=None,
    )


def checked(matrix: Matrix) -> Matrix:
    """Return the matrix, marked as unreadable where the shape of its weight does not fit its layer."""
    try:
        matrix.parameters()
        matrix.size()
    except Exception as error:  # noqa: BLE001 -- reported as the reason
        return mark_unreadable(matrix, reason_for(error))
    return matrix


def reason_for(error: Exception) -> str:
    """Return the reason to report for a weight whose reading has raised an error."""
    return error.reason if isinstance(error, UnreadableError) else describe(error)


def _misfit(shape: torch.Size) -> str:
    if shape.numel() == 0 and len(shape) > 1:
        return f"an empty weight of shape {tuple(shape)}"
    if shape.numel() == 0:
        return f"an empty weight of shape {tuple(shape)}, as ZeRO-3 leaves in a checkpoint: join its shards first"
    if len(shape) == 1:
        return f"shape {tuple(shape)} does not fit its layer; probably {shape.numel()} elements of a sharded weight"
    return f"shape {tuple(shape)} does not fit its layer"


def _tensors_behind(matrix: Matrix) -> tuple[Tensor, ...]:
    with suppress(Exception):
        given: tuple[Any, ...] = matrix.parameters()
        return tuple(each for each in given if isinstance(each, Tensor))
    return ()


def _raise_unreadable(reason: str) -> Tensor:
    raise UnreadableError("skipped", reason)
