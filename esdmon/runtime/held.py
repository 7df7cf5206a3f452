"""`HeldParameters`: the parameters that the optimizers hold."""

from collections.abc import Sequence
from typing import final

from torch.optim import Optimizer

from esdmon.weights import Matrix


@final
class HeldParameters:
    """Which parameters are in the groups of the optimizers, as of the last `refresh`.

    Args:
        optimizers: none where the monitor was given none.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self.refresh()

    def refresh(self) -> None:
        """Look again: groups may be added between two due steps."""
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        self._ids = frozenset(id(parameter) for group in groups for parameter in group["params"])

    def holds(self, matrix: Matrix) -> bool | None:
        """Return whether any parameter behind a matrix is held; None where that is not known."""
        if not self._optimizers:
            return None
        if any(id(parameter) in self._ids for parameter in matrix.parameters()):
            return True
        # Of a shard the optimizer may hold a copy under another identity.
        return None if matrix.unreadable else False
