"""Extract layers whose packed weight cannot be read without the layer.

Layers of torch's own quantisation, dynamic or static, pack the weight in an object, and are read by their `weight()` or
`get_weight()`. They have no parameters, so each weight has a stand-in: a tensor of its shape on the meta device.

Layers of bitsandbytes keep the scales of the packed numbers. A 4-bit parameter loses its scales when FSDP replaces the
parameter, and an 8-bit parameter moves its scales to the layer at the first `forward`. All these layers are recognised
by the modules of their classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.quantized import is_of_bitsandbytes, unpack_4bit, unpack_8bit
from esdmon.weights.layers.torch_nn import BY_NUMBER, EMBEDDING, split_rows
from esdmon.weights.matrix import Matrix
from esdmon.weights.torch_private import parameters_of

_PACKAGES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


def extract_quantized_module(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the matrices of a quantised layer, under the names of the layer before; None for any other module."""
    if not type(module).__module__.startswith(_PACKAGES):
        return None
    layer: Any = module
    if callable(getattr(layer, "get_weight", None)):
        return _recurrent(name, layer)
    if not callable(getattr(layer, "weight", None)):
        return None
    read = partial(_read, layer.weight)
    shape = read().shape
    if len(shape) > 2:
        matrix = Matrix(name, read, partial(stacks.convolution, groups=layer.groups, dimensions=len(shape)))
    else:
        matrix = Matrix(name, read, stacks.linear, on_request=EMBEDDING if hasattr(layer, "num_embeddings") else "")
    return _with_stand_in([matrix], shape)


def extract_bitsandbytes(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the weight of a linear layer or embedding of bitsandbytes that packs it; None for any other module."""
    layer: Any = module
    if not is_of_bitsandbytes(module):
        return None
    if getattr(layer, "quant_state", None) is None and not is_of_bitsandbytes(parameters_of(module).get("weight")):
        return None
    is_embedding = isinstance(module, nn.Embedding)
    shape = (layer.num_embeddings, layer.embedding_dim) if is_embedding else (layer.out_features, layer.in_features)
    return [
        Matrix(
            name,
            partial(_read_of_bitsandbytes, layer),
            stacks.linear,
            made_of=lambda: (layer.weight,),
            outline=partial(torch.empty, shape, device="meta"),
            on_request=EMBEDDING if is_embedding else "",
        )
    ]


def _read_of_bitsandbytes(layer: Any) -> Tensor:
    """Return the weight of a layer of 4 or 8 bits, unpacked; the parameter itself before it was packed."""
    packed: Tensor = layer.weight
    state = getattr(packed, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is not None:
        return unpack_4bit(packed, state)
    scales = [getattr(holder, "SCB", None) for holder in (packed, getattr(layer, "state", None))]
    scale = next((each for each in scales if each is not None), None)
    return packed if packed.dtype != torch.int8 or scale is None else unpack_8bit(packed, scale)


def _recurrent(name: str, layer: Any) -> list[Matrix]:
    """Return the gates of an LSTM or GRU, or of a cell of one, as in torch.nn."""
    found: list[Matrix] = []
    for key, weight in layer.get_weight().items():
        labels = BY_NUMBER.get(weight.shape[0] // layer.hidden_size, "h")
        gates = split_rows(f"{name}.{key}", partial(_read_one, layer.get_weight, key), labels)
        found += _with_stand_in(gates, weight.shape)
    return found


def _with_stand_in(matrices: Sequence[Matrix], shape: torch.Size) -> list[Matrix]:
    """Return the matrices of one weight, with a stand-in for the parameter that the layer does not have."""
    stand_in = torch.empty(shape, device="meta")
    return [replace(matrix, made_of=lambda: (stand_in,), outline=lambda: stand_in) for matrix in matrices]


def _read(unpack: Callable[[], Tensor]) -> Tensor:
    weight = unpack()
    return weight.dequantize() if weight.is_quantized else weight


def _read_one(unpack: Callable[[], dict[str, Tensor]], key: str) -> Tensor:
    return _read(lambda: unpack()[key])
