"""Extract weights of torch's own quantisation, dynamic or static, which are packed in an object.

They are recognised by where their classes live, and read by their own `weight()` or `get_weight()`. In the place of
the parameters that they lack, each weight has a stand-in: a tensor on the meta device of its shape.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.fused import rows
from esdmon.weights.layers.torch_nn import EMBEDDING, GATES
from esdmon.weights.matrix import Matrix
from esdmon.weights.stacks import ToStack

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
        to_stack = partial(stacks.convolution, groups=layer.groups, dimensions=len(shape))
        return [_matrix(name, read, to_stack, _stand_in(shape))]
    is_embedding = hasattr(layer, "num_embeddings")
    return [_matrix(name, read, stacks.linear, _stand_in(shape), on_request=EMBEDDING if is_embedding else "")]


def _recurrent(name: str, layer: Any) -> list[Matrix]:
    """Return the gates of an LSTM or GRU; of a cell, each weight as one matrix, as in torch.nn."""
    found = []
    for key, weight in layer.get_weight().items():
        labels = GATES[layer.mode] if hasattr(layer, "mode") else ""
        stand_in, read = _stand_in(weight.shape), partial(_read_one, layer.get_weight, key)
        whole: dict[str, ToStack] = {"": stacks.linear}
        parts = rows(labels, [weight.shape[0] // len(labels)] * len(labels)) if labels else whole
        for label, to_stack in parts.items():
            found.append(_matrix(f"{name}.{key}/{label}" if label else f"{name}.{key}", read, to_stack, stand_in))
    return found


def _matrix(
    name: str, read: Callable[[], Tensor], to_stack: ToStack, stand_in: Tensor, *, on_request: str = ""
) -> Matrix:
    return Matrix(name, read, to_stack, made_of=lambda: (stand_in,), outline=lambda: stand_in, on_request=on_request)


def _stand_in(shape: torch.Size) -> Tensor:
    return torch.empty(shape, device="meta")


def _read(unpack: Callable[[], Tensor]) -> Tensor:
    weight = unpack()
    return weight.dequantize() if weight.is_quantized else weight


def _read_one(unpack: Callable[[], dict[str, Tensor]], key: str) -> Tensor:
    return _read(lambda: unpack()[key])
