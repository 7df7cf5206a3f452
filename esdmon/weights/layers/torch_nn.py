"""Extract the layers of torch.nn."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.attention import heads_of, output_of
from esdmon.weights.layers.fused import equal_rows
from esdmon.weights.layers.products import Projection, products_of
from esdmon.weights.matrix import Matrix
from esdmon.weights.torch_private import recurrent_attributes

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "h", "RNN_RELU": "h"}
BY_NUMBER = {4: GATES["LSTM"], 3: GATES["GRU"], 1: GATES["RNN_TANH"]}
"""The gates by the number of rows for each output."""
EMBEDDING = "embeddings are read on request: name them in layers="
_FLATTENED = "convolutions are read by kernel position; flattened on request: '*/flattened' in layers="


def extract_torch(name: str, module: nn.Module) -> Sequence[Matrix] | None:  # noqa: PLR0911 -- one for each kind
    """Return the matrices of a linear, bilinear, convolutional, recurrent or embedding layer, or of attention."""
    weight = partial(getattr, module, "weight")
    match module:
        case nn.Linear():
            return [Matrix(name, weight, stacks.linear)]
        case nn.Bilinear():
            return [Matrix(name, weight, stacks.identity)]
        case nn.Embedding() | nn.EmbeddingBag():
            return [Matrix(name, weight, stacks.linear, on_request=EMBEDDING)]
        case nn.MultiheadAttention():
            return _extract_attention(name, module)
        case nn.RNNBase():
            return _extract_recurrent(name, module)
        case nn.RNNCellBase():
            return _extract_cell(name, module)
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return [Matrix(name, weight, stacks.linear)]  # a linear layer of transformers, stored as (inputs, outputs)
    if isinstance(module, _CONVOLUTIONS):
        groups, dimensions = module.groups, 2 + len(module.kernel_size)
        whole = Matrix(name, weight, partial(stacks.convolution, groups=groups, dimensions=dimensions))
        to_flat = partial(stacks.flattened, groups=groups, dimensions=dimensions)
        return [whole, Matrix(f"{name}/flattened", weight, to_flat, on_request=_FLATTENED, detail=True)]
    return None


def split_rows(name: str, read: Callable[[], Tensor], labels: str) -> list[Matrix]:
    """Return one matrix for each label, from a weight that holds them above each other in equal parts."""
    weight = read()
    if len(labels) == 1 or getattr(weight, "ndim", 0) != 2:  # a weight of another shape is reported as one
        return [Matrix(name, read, stacks.linear)]
    parts = equal_rows(labels, weight.shape[0])
    return [Matrix(f"{name}/{label}", read, to_stack) for label, to_stack in parts.items()]


def _extract_attention(name: str, module: nn.MultiheadAttention) -> list[Matrix]:
    """Return q, k, v, their heads and products; they have one parameter, or three where their widths differ."""
    if module.in_proj_weight is not None:
        wholes = split_rows(f"{name}.in_proj_weight", partial(getattr, module, "in_proj_weight"), "qkv")
    else:
        attributes = [f"{label}_proj_weight" for label in "qkv"]
        wholes = [Matrix(f"{name}.{each}", partial(getattr, module, each), stacks.linear) for each in attributes]
    projections = [Projection(whole, head_size=module.head_dim) for whole in wholes]
    found = [matrix for projection in projections for matrix in (projection.weight, *heads_of(projection))]
    by_letter = dict(zip("qkv", projections, strict=True)) if len(projections) == len("qkv") else {}
    return [*found, *products_of(name, module, by_letter | output_of(name, module))]


def _extract_recurrent(name: str, module: nn.RNNBase) -> list[Matrix]:
    """Return the gates of each layer and direction, from the input and from the state; a projection is one matrix."""
    found: list[Matrix] = []
    for attribute in recurrent_attributes(module):  # under weight_norm the parameters have other names
        if attribute.startswith("weight"):
            labels = "p" if "_hr_" in attribute else GATES[module.mode]
            found += split_rows(f"{name}.{attribute}", partial(getattr, module, attribute), labels)
    return found


def _extract_cell(name: str, module: nn.RNNCellBase) -> list[Matrix]:
    """Return the gates of a recurrent cell, from the input and from the state."""
    found: list[Matrix] = []
    for attribute in ("weight_ih", "weight_hh"):
        read = partial(getattr, module, attribute)
        found += split_rows(f"{name}.{attribute}", read, BY_NUMBER.get(read().shape[0] // module.hidden_size, "h"))
    return found
