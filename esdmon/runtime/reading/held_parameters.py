"""`HeldParameters`: the parameters that the optimizers hold."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import final

from torch.optim import Optimizer

from esdmon.records.text import named
from esdmon.weights import Matrix

_log = logging.getLogger("esdmon")


@final
class HeldParameters:
    """Which parameters are in the groups of the optimizers, as of the last `refresh`.

    Args:
        optimizers: none where the monitor was given none.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._names: frozenset[str] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Look again: groups may be added between two due steps."""
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        self._groups = {id(parameter): group for group in groups for parameter in group["params"]}

    def take_up(self, matrices: Iterable[Matrix]) -> None:
        """Log the matrices whose parameters were held until they were replaced; call it after matrices have changed."""
        holds = [(matrix, self.holds(matrix)) for matrix in matrices]
        lost = [
            matrix.name
            for matrix, is_held in holds
            if is_held is False
            and matrix.name in self._names
            and any(each.requires_grad for each in matrix.parameters())
        ]
        self._names = frozenset(matrix.name for matrix, is_held in holds if is_held)
        if lost:
            _log.warning(
                "esdmon: the parameters of %s were replaced, and the optimizer still holds those of before, so it "
                "does not train the new ones. Put these into its groups, or make the optimizer after such a change.",
                named(lost),
            )

    def log_what_is_not_held(self, matrices: Sequence[Matrix]) -> None:
        """Log if none of the matrices is held, or which are not though they require gradients."""
        holds = [self.holds(matrix) for matrix in matrices]
        if False in holds and True not in holds:
            _log.warning(
                "esdmon: the optimizer holds none of the weights that are watched, so it does not train them. Give "
                "watch() the optimizer of this model."
            )
            return
        lacking = [
            matrix.name
            for matrix, is_held in zip(matrices, holds, strict=True)
            if is_held is False and any(each.requires_grad for each in matrix.parameters())
        ]
        if lacking:
            _log.info(
                "esdmon: %d of %d matrices require gradients and are not in the optimizer, so another one trains them, "
                "or none: %s",
                len(lacking),
                len(matrices),
                named(lacking),
            )

    def holds(self, matrix: Matrix) -> bool | None:
        """Return whether any parameter behind a matrix is held; None where that is not known."""
        if not self._optimizers:
            return None
        if any(id(parameter) in self._groups for parameter in matrix.parameters()):
            return True
        # Of a shard the optimizer may hold a copy under another identity.
        return None if matrix.unreadable else False

    def learning_rate(self, matrix: Matrix) -> float:
        """Return the learning rate of the parameters behind a matrix, the largest of several; NaN if it is not known.

        One that is on an accelerator counts as not known, since to read it would wait for the device.
        """
        return self._largest("lr", matrix)

    def weight_decay(self, matrix: Matrix) -> float:
        """Return the weight decay of the parameters behind a matrix, as `learning_rate` does."""
        return self._largest("weight_decay", matrix)

    def _largest(self, key: str, matrix: Matrix) -> float:
        groups = (self._groups.get(id(parameter), {}) for parameter in matrix.parameters()) if self._groups else ()
        values = [value for group in groups if isinstance(value := group.get(key), float | int)]
        return float(max(values, default=math.nan))
