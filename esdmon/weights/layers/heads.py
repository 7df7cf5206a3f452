"""The heads of attention, on request."""

from functools import partial

from esdmon.weights import stacks
from esdmon.weights.matrix import Matrix, UnreadableError

_HEADS = "attention is read whole; head by head on request: '*/head.3' in layers="


def heads_of(whole: Matrix, *, size: int, dim: int = 1) -> list[Matrix]:
    """One matrix for each head of a projection whose outputs lie along `dim` of its stack; none if they do not fit."""
    try:
        outputs = whole.stack_shape()[dim]
    except UnreadableError:  # told of the whole
        return []
    if size <= 0 or outputs % size:
        return []
    return [
        Matrix(
            f"{whole.name}/head.{head}",
            whole.read,
            partial(stacks.one_head, of=whole.to_stack, dim=dim, start=head * size, size=size),
            on_request=_HEADS,
            detail=True,
        )
        for head in range(outputs // size)
    ]
