"""Weights that are stored as packed numbers, and give the numbers that they stand for.

Known by what they offer, without importing the library that made them: torch's own quantised tensors, tensor classes
with a `dequantize` of their own (torchao, quanto), and the 4-bit and 8-bit parameters of bitsandbytes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from esdmon.weights.matrix import Matrix


def dequantised(matrix: Matrix) -> Matrix:
    """The matrix, read as the numbers that its packed weight stands for; any other as it is."""
    if matrix.made_of is not None:
        return matrix
    weight = matrix.read()
    unpack = _unpacker(weight)
    if unpack is None:
        return matrix
    shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
    return replace(
        matrix,
        read=lambda: unpack(matrix.read()),
        made_of=lambda: (matrix.read(),),
        outline=partial(torch.empty, shape, device="meta"),
    )


def _unpacker(weight: Any) -> Callable[[Any], Tensor] | None:
    kind = type(weight)
    if kind.__module__.startswith("bitsandbytes."):
        functional = import_module("bitsandbytes.functional")
        if getattr(weight, "quant_state", None) is not None:
            return lambda packed: functional.dequantize_4bit(packed.data, packed.quant_state)
        if getattr(weight, "SCB", None) is not None:
            return lambda packed: functional.int8_vectorwise_dequant(packed.CB, packed.SCB)
        return None
    if weight.is_quantized or kind.dequantize is not Tensor.dequantize:
        return lambda packed: packed.detach().dequantize()
    return None
