"""Define `HeldParameters`: the parameters that the optimizers hold."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from esdmon.records.text import named
from esdmon.weights import Matrix

_log = logging.getLogger("esdmon")


@final
class HeldParameters:
    """The parameters in the groups of the optimizers, as of the last `refresh`.

    Args:
        optimizers: the optimizers; empty if the monitor has none.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._names: frozenset[str] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Update the parameters, since groups may be added between two due steps."""
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
                "esdmon: the parameters of %s were replaced, and the optimizer still holds the old ones, so it "
                "does not train the new ones. Add the new ones to its param_groups, or create it after such a change.",
                named(lost),
            )

    def log_what_is_not_held(self, matrices: Sequence[Matrix], of_model: Callable[[], Mapping[str, Tensor]]) -> None:
        """Log if none of the matrices is held, or which are not though they require gradients.

        Args:
            matrices: the matrices that are watched.
            of_model: returns all parameters of the model by name.
        """
        holds = [self.holds(matrix) for matrix in matrices]
        if False in holds and True not in holds:
            self._log_that_none_is_held(of_model())
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

    def _log_that_none_is_held(self, of_model: Mapping[str, Tensor]) -> None:
        trained = [name for name, parameter in of_model.items() if id(parameter) in self._groups]
        if trained:  # an output head, as in linear probing, biases, a prompt, or an adapter of unknown kind
            _log.warning(
                "esdmon: the optimizer holds none of the weights that are watched, so it does not train them. It "
                "trains %s. Name these in layers= if they can be read; a line at level INFO says why they are not.",
                named(trained),
            )
        else:
            _log.warning(
                "esdmon: the optimizer holds none of the weights that are watched, so it does not train them. Give "
                "watch() the optimizer of this model."
            )

    def holds(self, matrix: Matrix) -> bool | None:
        """Return whether any parameter behind a matrix is held; None if that is not known."""
        if not self._optimizers:
            return None
        if any(id(parameter) in self._groups for parameter in matrix.parameters()):
            return True
        # For a shard the optimizer may hold a copy, which is another object.
        return None if matrix.unreadable else False

    def learning_rate(self, matrix: Matrix) -> float:
        """Return the learning rate of the parameters behind a matrix, the largest of several; NaN if it is not known.

        It is the rate of the last step. A rate on an accelerator counts as not known, since reading it would wait for
        the device.
        """
        return self._largest(_rate, matrix)

    def weight_decay(self, matrix: Matrix) -> float:
        """Return the weight decay of the parameters behind a matrix, as `learning_rate` does."""
        return self._largest(lambda group: _number(group.get("weight_decay")), matrix)

    def _largest(self, setting: Callable[[Mapping[str, Any]], float], matrix: Matrix) -> float:
        groups = (self._groups.get(id(parameter), {}) for parameter in matrix.parameters()) if self._groups else ()
        return max((value for group in groups if not math.isnan(value := setting(group))), default=math.nan)


def _rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate that the last step of a group was taken with.

    D-Adaptation and Prodigy multiply `lr` by their estimate `d`. Schedule-free optimizers multiply it by their warm-up,
    and keep the product as `scheduled_lr`, which is 0 before the first step.
    """
    scheduled = _number(group.get("scheduled_lr"))
    return (scheduled if scheduled > 0 else _number(group.get("lr"))) * _number(group.get("d", 1.0))


def _number(value: object) -> float:
    """Return a number or a tensor of one element on the CPU as a float; NaN for anything else."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.device.type == "cpu" and value.numel() == 1 else math.nan
    return float(value) if isinstance(value, float | int) else math.nan
