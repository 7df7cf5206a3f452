"""The layers of torch."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.heads import heads_of
from esdmon.weights.matrix import Matrix

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "h", "RNN_RELU": "h"}
EMBEDDING = "embeddings are read on request: name them in layers="
_FLATTENED = "convolutions are read by kernel position; flattened on request: '*/flattened' in layers="


def extract_torch(name: str, module: nn.Module) -> Sequence[Matrix] | None:  # noqa: PLR0911 -- one for each kind
    """The matrices of a linear or bilinear layer, a convolution, attention, a recurrent layer or an embedding."""
    weight = partial(getattr, module, "weight")
    match module:
        case nn.Linear():
            return [Matrix(name, weight, stacks.linear)]
        case nn.Bilinear():
            return [Matrix(name, weight, stacks.as_it_is)]
        case nn.Embedding() | nn.EmbeddingBag():
            return [Matrix(name, weight, stacks.linear, on_request=EMBEDDING)]
        case nn.MultiheadAttention():
            return _attention(name, module)
        case nn.RNNBase():
            return _recurrent(name, module)
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return [Matrix(name, weight, stacks.linear)]  # a linear layer of transformers, stored as (inputs, outputs)
    if isinstance(module, _CONVOLUTIONS):
        dimensions = 2 + len(module.kernel_size)
        return [
            Matrix(name, weight, partial(stacks.convolution, groups=module.groups, dimensions=dimensions)),
            Matrix(
                f"{name}/flattened",
                weight,
                partial(stacks.flattened, groups=module.groups, dimensions=dimensions),
                on_request=_FLATTENED,
                detail=True,
            ),
        ]
    return None


def _parts(name: str, read: Callable[[], Tensor], labels: str) -> list[Matrix]:
    """A weight in which as many matrices as there are labels stand on top of each other."""
    weight = read()
    if len(labels) == 1 or getattr(weight, "ndim", 0) != 2:  # of a strange shape: told as one
        return [Matrix(name, read, stacks.linear)]
    rows = weight.shape[0] // len(labels)
    return [
        Matrix(f"{name}/{label}", read, partial(stacks.some_rows, start=part * rows, stop=(part + 1) * rows))
        for part, label in enumerate(labels)
    ]


def _attention(name: str, module: nn.MultiheadAttention) -> list[Matrix]:
    """q, k and v, in one parameter or, where their widths differ, in three; `out_proj` is a module of its own."""
    if module.in_proj_weight is not None:
        wholes = _parts(f"{name}.in_proj_weight", partial(getattr, module, "in_proj_weight"), "qkv")
    else:
        names = [f"{label}_proj_weight" for label in "qkv"]
        wholes = [Matrix(f"{name}.{attr}", partial(getattr, module, attr), stacks.linear) for attr in names]
    return [matrix for whole in wholes for matrix in (whole, *heads_of(whole, size=module.head_dim))]


def _recurrent(name: str, module: nn.RNNBase) -> list[Matrix]:
    """The gates of each layer and direction, from the input and from the state; a projection is one matrix."""
    return [
        matrix
        for attribute in module._flat_weights_names  # noqa: SLF001 -- the parameters' own names differ under weight_norm
        if attribute.startswith("weight")
        for matrix in _parts(
            f"{name}.{attribute}",
            partial(getattr, module, attribute),
            "p" if "_hr_" in attribute else _GATES[module.mode],
        )
    ]
