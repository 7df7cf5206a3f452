"""Extract weights that are stored as packed numbers, and unpack them.

They are recognised by their attributes and methods, without importing the library that made them: torch's own quantised
tensors, tensor classes with their own `dequantize` (torchao, quanto), and 4-bit and 8-bit parameters of bitsandbytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights.matrix import Matrix
from esdmon.weights.non_weights import FLOAT8

Materializer = Callable[[Tensor], Callable[[Tensor], Tensor] | None]
"""`parameter -> function that converts it to an ordinary tensor`; None for an ordinary or an unknown parameter."""


def unpacker(weight: Any) -> Callable[[Any], Tensor] | None:
    """Return a function that converts a packed weight to an ordinary tensor.

    Returns:
        None for a weight that is not packed, or packed in an unknown way.
    """
    kind = type(weight)
    if is_of_bitsandbytes(weight):
        if getattr(weight, "quant_state", None) is not None:
            return unpack_4bit
        return None if getattr(weight, "SCB", None) is None else unpack_8bit
    return _dequantize if weight.is_quantized or kind.dequantize is not Tensor.dequantize else None


def materialize(matrix: Matrix, materializer: Materializer = unpacker) -> Matrix:
    """Return a handle that reads a packed weight as an ordinary tensor; a handle on an ordinary weight unchanged."""
    if matrix.made_of is not None:
        return matrix
    weight = matrix.read()
    unpack = None if _is_ordinary(weight) else materializer(weight)
    if unpack is None:
        return matrix
    shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
    return replace(
        matrix,
        read=partial(_read_unpacked, matrix.read, unpack),
        made_of=matrix.parameters,
        outline=partial(torch.empty, shape, device="meta"),
    )


def with_float8(module: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices of a module; its float8 weights are converted to float32 if it holds no scale for them."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    if not any(tensor.dtype in FLOAT8 for _, tensor in own) or any("scale" in name for name, _ in own):
        return list(matrices)
    return [materialize(matrix, lambda weight: Tensor.float if weight.dtype in FLOAT8 else None) for matrix in matrices]


def _read_unpacked(read: Callable[[], Tensor], unpack: Callable[[Tensor], Tensor]) -> Tensor:
    return unpack(read())


def _is_ordinary(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1


def _dequantize(packed: Tensor) -> Tensor:
    return packed.detach().dequantize()


def is_of_bitsandbytes(owner: object) -> bool:
    """Return whether a layer or a parameter is one of bitsandbytes."""
    return type(owner).__module__.startswith("bitsandbytes.")


def unpack_4bit(packed: Any, state: Any = None) -> Tensor:
    """Return the numbers that a 4-bit weight of bitsandbytes represents; `state` has its scales if it has lost them."""
    unpacked: Tensor = import_module("bitsandbytes.functional").dequantize_4bit(
        packed.data, state or packed.quant_state
    )
    return unpacked


def unpack_8bit(packed: Any, scale: Tensor | None = None) -> Tensor:
    """Return the numbers that an 8-bit weight of bitsandbytes represents; `scale` if the layer has taken its scales."""
    scale = packed.SCB if scale is None else scale
    unpacked: Tensor = import_module("bitsandbytes.functional").int8_vectorwise_dequant(packed.data, scale)
    return unpacked
