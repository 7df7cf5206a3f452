"""Define `Shard`: a weight of which this rank holds a part."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from esdmon.schedule.fragments import Fragment

SHARDED = "sharded over ranks: analyze() reads whole models, watch() on every rank of the job reads sharded ones"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A weight of which this rank holds a part."""

    parameter: Tensor
    """The tensor that the optimizer holds; several weights have the same one where they are flattened together."""
    shape: torch.Size
    """Shape of the whole weight, as far as known."""
    dtype: torch.dtype
    """Description of the part that is read."""
    fragment: Fragment | None = None
    """The part of this rank; None if it holds none."""
    read: Callable[[], Tensor] | None = None
    """Returns the elements of the fragment, on the weight's device; None for a weight that cannot be read."""
    group: int = 0
    """The first rank of those that share the weight."""
    grid: torch.Size | None = None
    """Shape of as many elements in which the fragment is a box; None: that of the weight."""
    reason: str = ""
    """Reason why the weight cannot be read; empty if it can be assembled."""

    @property
    def box_shape(self) -> torch.Size:
        """Return the shape in which the fragment is a box."""
        return self.shape if self.grid is None else self.grid

    @property
    def is_whole(self) -> bool:
        """Return whether this rank holds all of the weight."""
        return self.fragment is not None and self.fragment.n_elements == math.prod(self.shape)

    def local(self) -> Tensor:
        """Return this rank's part, without gradient: a box in its shape, an interval in one dimension."""
        if self.read is None or self.fragment is None:
            return torch.empty(0, dtype=self.dtype)
        with torch.no_grad():
            return self.read().detach()


def unknown_shard(parameter: Tensor, host: str) -> Shard:
    """Return the shard of a parameter that a host splits in a way that cannot be read."""
    reason = f"sharded over ranks in a way that esdmon does not know, or that this version of {host} stores elsewhere"
    return Shard(parameter, parameter.shape, parameter.dtype, reason=reason)


def itself(parameter: Tensor) -> Tensor:
    """Return the parameter itself, as the reader of a parameter whose elements are plain on this rank."""
    return parameter
