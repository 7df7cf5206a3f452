"""Convert weights to stacks (slices, rows, columns).

Each function returns a view or makes one copy, and works on the meta device.
"""

from collections.abc import Callable

from torch import Tensor

ToStack = Callable[[Tensor], Tensor]
"""Converts a weight to a stack."""


def identity(weight: Tensor) -> Tensor:
    """Return a weight that is a stack already."""
    return weight


def linear(weight: Tensor) -> Tensor:
    """Return (outputs, inputs) as one slice."""
    return weight.unsqueeze(0)


def convolution(weight: Tensor, *, groups: int = 1, dimensions: int | None = None) -> Tensor:
    """Return (A, B, *kernel) of g groups as one slice A/g × B for each group and kernel position.

    A are the outputs, or the inputs of a transposed convolution; torch splits A into the groups in both. The spectra of
    the slices are pooled, as Martin & Mahoney do.

    Raises:
        ValueError: if `dimensions` is given and the weight has another number of them.
    """
    _check_dimensions(weight, dimensions)
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    return weight.reshape(groups, rows, columns, -1).permute(0, 3, 1, 2).reshape(-1, rows, columns)


def convolution_inputs_first(weight: Tensor) -> Tensor:
    """Return (*kernel, inputs, outputs), as Keras has it, as one slice for each kernel position."""
    return weight.reshape(-1, weight.shape[-2], weight.shape[-1])


def to_heads(weight: Tensor) -> Tensor:
    """Return (inputs, heads, size) as one slice."""
    return weight.reshape(1, weight.shape[0], -1)


def from_heads(weight: Tensor) -> Tensor:
    """Return (heads, size, outputs) as one slice."""
    return weight.reshape(1, -1, weight.shape[-1])


def of_layers(weight: Tensor) -> Tensor:
    """Return (layers, outputs, inputs, *kernel) as one slice for each layer and kernel position.

    StyleGAN 2 has one layer in it, an ensemble several.
    """
    return convolution(weight.flatten(0, 1), groups=weight.shape[0])


def flattened(weight: Tensor, *, groups: int = 1, dimensions: int | None = None) -> Tensor:
    """Return (A, B, *kernel) of g groups as one slice A/g × (B · positions) for each group: the map of a whole patch.

    Raises:
        ValueError: if `dimensions` is given and the weight has another number of them.
    """
    _check_dimensions(weight, dimensions)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _check_dimensions(weight: Tensor, dimensions: int | None) -> None:
    if dimensions is not None and weight.ndim != dimensions:
        raise ValueError(f"expected a weight of {dimensions} dimensions, got {weight.ndim}")


def some_rows(weight: Tensor, *, start: int, stop: int) -> Tensor:
    """Return the rows from `start` up to `stop` of a 2-D weight that holds several matrices above each other."""
    return weight[start:stop].unsqueeze(0)


def some_columns(weight: Tensor, *, start: int, stop: int) -> Tensor:
    """Return the columns from `start` up to `stop` of a 2-D weight that holds several matrices side by side."""
    return weight[:, start:stop].unsqueeze(0)


def rows_of_heads(weight: Tensor, *, part: int, parts: int, size: int, width: int = 1) -> Tensor:
    """Return one of the matrices of a 2-D weight that alternate in blocks of `size` rows.

    Args:
        weight: holds them.
        part: the first of its blocks in each run, from 0.
        parts: blocks in each run, of all matrices.
        size: outputs of one head.
        width: its blocks in each run.
    """
    runs = weight.reshape(-1, parts, size, weight.shape[1])
    return runs[:, part : part + width].reshape(1, -1, weight.shape[1])


def one_head(weight: Tensor, *, of: ToStack, dim: int, start: int, size: int) -> Tensor:
    """Return some outputs of a projection.

    Args:
        weight: the weight of the projection.
        of: converts it to a stack.
        dim: dimension of the stack along which the outputs lie.
        start: the first output.
        size: number of outputs.
    """
    return of(weight).narrow(dim, start, size)


def one_expert(weight: Tensor, *, expert: int) -> Tensor:
    """Return one slice of (experts, rows, columns)."""
    return weight[expert : expert + 1]


def experts_in_memory(weight: Tensor, *, experts: int, rows: int) -> Tensor:
    """Return the matrices, each of so many rows, that follow one another in the memory of a weight."""
    return weight.reshape(experts, rows, -1)


def half_of_experts(
    weight: Tensor, *, half: int, dim: int, interleaved: bool = False, of: ToStack = identity
) -> Tensor:
    """Return the gate or the up-projection of (experts, rows, columns).

    Args:
        weight: holds both along `dim`.
        half: 0 for the gate, 1 for the up-projection.
        dim: 1 or 2.
        interleaved: True if their rows or columns alternate; False if one half follows the other.
        of: converts the weight to a stack of these.
    """
    both = of(weight)
    if interleaved:
        return both[:, half::2] if dim == 1 else both[:, :, half::2]
    width = both.shape[dim] // 2
    return both.narrow(dim, half * width, width)
