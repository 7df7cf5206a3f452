"""How a weight becomes a stack (slices, rows, columns); all of them views or one copy, and shapes alone will do."""

from collections.abc import Callable

from torch import Tensor


def as_it_is(weight: Tensor) -> Tensor:
    """A weight that is a stack already."""
    return weight


def linear(weight: Tensor) -> Tensor:
    """(outputs, inputs) as one slice."""
    return weight.unsqueeze(0)


def convolution(weight: Tensor, *, groups: int = 1, dimensions: int | None = None) -> Tensor:
    """(A, B, *kernel) of g groups as one slice A/g × B for each group and kernel position.

    A are the outputs, or the inputs of a transposed convolution, which torch splits into groups likewise. The spectra
    of the slices are pooled, as Martin & Mahoney do.
    """
    _check(weight, dimensions)
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    return weight.reshape(groups, rows, columns, -1).permute(0, 3, 1, 2).reshape(-1, rows, columns)


def flattened(weight: Tensor, *, groups: int = 1, dimensions: int | None = None) -> Tensor:
    """(A, B, *kernel) of g groups as one slice A/g × (B · positions) for each group: the map of a whole patch."""
    _check(weight, dimensions)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _check(weight: Tensor, dimensions: int | None) -> None:
    if dimensions is not None and weight.ndim != dimensions:
        msg = f"a weight of {weight.ndim} dimensions, where its layer has {dimensions}"
        raise ValueError(msg)


def some_rows(weight: Tensor, *, start: int, stop: int) -> Tensor:
    """One of several matrices that stand on top of each other in a 2-D weight."""
    return weight[start:stop].unsqueeze(0)


def some_columns(weight: Tensor, *, start: int, stop: int) -> Tensor:
    """One of several matrices that stand side by side in a 2-D weight."""
    return weight[:, start:stop].unsqueeze(0)


def rows_of_heads(weight: Tensor, *, part: int, parts: int, size: int) -> Tensor:
    """One of several matrices whose rows alternate in runs of `size`, one run to a head."""
    runs = weight.reshape(-1, parts, size, weight.shape[1])
    return runs[:, part].reshape(1, -1, weight.shape[1])


def one_head(weight: Tensor, *, of: Callable[[Tensor], Tensor], dim: int, start: int, size: int) -> Tensor:
    """Some outputs of a projection, which `of` makes a stack."""
    return of(weight).narrow(dim, start, size)


def one_expert(weight: Tensor, *, expert: int) -> Tensor:
    """One of (experts, rows, columns)."""
    return weight[expert : expert + 1]


def half_of_experts(weight: Tensor, *, half: int, dim: int, interleaved: bool) -> Tensor:
    """The gate (0) or the up-projection (1) of (experts, rows, columns), which share a side: in turn or in halves."""
    if interleaved:
        return weight[:, half::2] if dim == 1 else weight[:, :, half::2]
    width = weight.shape[dim] // 2
    return weight.narrow(dim, half * width, width)
