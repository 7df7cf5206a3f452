"""Which matrices a module holds: the built-in extractor, for the layers of torch.

Layers that it does not know are no loss: `discover` reads any 2-D parameter that nobody has claimed as one matrix.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from esdmon.weights.matrix import Matrix

Extractor = Callable[[str, nn.Module], Sequence[Matrix] | None]
"""`(canonical name, module) -> matrices`, or None for a kind of module that it does not know."""

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "h", "RNN_RELU": "h"}
_EMBEDDING = "embeddings are read on request: name them in layers="


def extract(name: str, module: nn.Module) -> Sequence[Matrix] | None:  # noqa: PLR0911 -- one for each kind
    """The matrices of a linear or bilinear layer, a convolution, attention, a recurrent layer or an embedding."""
    weight = partial(getattr, module, "weight")
    match module:
        case nn.Linear():
            return [Matrix(name, weight, linear_stack)]
        case nn.Bilinear():
            return [Matrix(name, weight, _as_it_is)]
        case nn.Embedding() | nn.EmbeddingBag():
            return [Matrix(name, weight, linear_stack, on_request=_EMBEDDING)]
        case nn.MultiheadAttention():
            return _attention(name, module)
        case nn.RNNBase():
            return _recurrent(name, module)
    if isinstance(module, _CONVOLUTIONS):
        return [Matrix(name, weight, partial(convolution_stack, groups=module.groups))]
    return None


def linear_stack(weight: Tensor) -> Tensor:
    """(outputs, inputs) as one slice."""
    return weight.unsqueeze(0)


def convolution_stack(weight: Tensor, *, groups: int = 1) -> Tensor:
    """(A, B, *kernel) of g groups as one slice A/g × B for each group and kernel position.

    A are the outputs, or the inputs of a transposed convolution, which torch splits into groups likewise. The spectra
    of the slices are pooled, as Martin & Mahoney do.
    """
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    return weight.reshape(groups, rows, columns, -1).permute(0, 3, 1, 2).reshape(-1, rows, columns)


def part_of_rows(weight: Tensor, *, part: int, parts: int) -> Tensor:
    """One of several matrices that stand on top of each other in a 2-D weight, as one slice."""
    rows = weight.shape[0] // parts
    return weight[part * rows : (part + 1) * rows].unsqueeze(0)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _parts(name: str, module: nn.Module, attribute: str, labels: str) -> list[Matrix]:
    read = partial(getattr, module, attribute)
    if len(labels) == 1:
        return [Matrix(f"{name}.{attribute}", read, linear_stack)]
    return [
        Matrix(f"{name}.{attribute}/{label}", read, partial(part_of_rows, part=part, parts=len(labels)))
        for part, label in enumerate(labels)
    ]


def _attention(name: str, module: nn.MultiheadAttention) -> list[Matrix]:
    """q, k and v, in one parameter or, where their widths differ, in three; `out_proj` is a module of its own."""
    if module.in_proj_weight is not None:
        return _parts(name, module, "in_proj_weight", "qkv")
    return [matrix for label in "qkv" for matrix in _parts(name, module, f"{label}_proj_weight", label)]


def _recurrent(name: str, module: nn.RNNBase) -> list[Matrix]:
    """The gates of each layer and direction, from the input and from the state; a projection is one matrix."""
    return [
        matrix
        for attribute, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2
        for matrix in _parts(name, module, attribute, "p" if "_hr_" in attribute else _GATES[module.mode])
    ]
