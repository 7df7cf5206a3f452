"""Provide the update and the momentum of each weight as matrices that are read on request.

`*/update` in `layers=` is the difference of W from the previous reading, and `*/momentum` the running mean of gradients
in the optimizer. Both have measures, but neither a phase nor alerts, which are defined for weights. They exist for
weights that are parameters, or parts of one, and are held whole by this process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from esdmon.errors import UnreadableError
from esdmon.weights import stacks
from esdmon.weights.device.precision import read_weight
from esdmon.weights.device.sample import sample_matrix
from esdmon.weights.matrix import Matrix
from esdmon.weights.momenta import find_momentum
from esdmon.weights.reference import subtract

_UPDATE = "the update since the last reading is read on request: '*/update' in layers="
_MOMENTUM = "the optimizer's momentum is read on request: '*/momentum' in layers="


@final
class TrainingViews:
    """Make the views of a model's weights, and keep the copies that they need.

    For each weight whose update is read, main memory holds two copies, from its last two readings.

    Args:
        optimizers: those of the model, whose states hold the momenta; without any, updates only are offered.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._weights: dict[str, Matrix] = {}
        self._copies: dict[str, tuple[Tensor | None, Tensor]] = {}

    def of(self, matrices: Sequence[Matrix]) -> list[Matrix]:
        """Return the views of these weights."""
        offered = [matrix for matrix in matrices if _is_offered(matrix)]
        self._weights = {f"{matrix.name}/update": matrix for matrix in offered}
        return [view for matrix in offered for view in self._views(matrix)]

    def mark(self, name: str) -> None:
        """Copy the weight behind an update, so that the update is the one since the last call.

        Do nothing for the name of any other matrix.

        Raises:
            UnreadableError: for a weight that holds no numbers; see `check_readable`.
        """
        matrix = self._weights.get(name)
        if matrix is not None:
            weight = read_weight(matrix)
            _, before = self._copies.get(name, (None, None))
            self._copies[name] = before, matrix.to_stack(weight).to("cpu", copy=True)

    def clear(self) -> None:
        """Discard the copies, since the weights belong to another run or step now."""
        self._copies.clear()

    def _views(self, matrix: Matrix) -> Iterator[Matrix]:
        view = replace(matrix, aliases=(), detail=True, made_of=matrix.parameters, probe=partial(sample_matrix, matrix))
        update = f"{matrix.name}/update"
        yield replace(
            view,
            name=update,
            read=partial(self._read_update, update),
            to_stack=stacks.identity,
            outline=partial(_outline, matrix),
            on_request=_UPDATE,
            view="update",
        )
        if self._optimizers:
            yield replace(
                view,
                name=f"{matrix.name}/momentum",
                read=lambda: find_momentum(self._optimizers, matrix.read()),
                outline=matrix.read,
                on_request=_MOMENTUM,
                view="momentum",
            )

    def _read_update(self, name: str) -> Tensor:
        before, now = self._copies.get(name, (None, None))
        if before is None or now is None:
            raise UnreadableError("skipped", "its first reading: the update is known from the second on")
        return subtract(now, before, same="it has not moved since its last reading", other="at its last reading")


def _is_offered(matrix: Matrix) -> bool:
    return matrix.made_of is None and matrix.is_here and not (matrix.unreadable or matrix.detail)


def _outline(matrix: Matrix) -> Tensor:
    return torch.empty(matrix.stack_shape(), device="meta")
