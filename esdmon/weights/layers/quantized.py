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
from torch import Tensor, nn

from esdmon.weights.matrix import Matrix

Materializer = Callable[[Tensor], Callable[[Tensor], Tensor] | None]
"""`parameter -> what turns it into an ordinary tensor`; None for one that is, or that it does not know."""


def unpacker(weight: Any) -> Callable[[Any], Tensor] | None:
    """What gives the numbers that a packed weight stands for; None for what is not packed, or in an unknown way."""
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


def materialised(matrix: Matrix, materializer: Materializer = unpacker) -> Matrix:
    """The matrix, read as the numbers that its weight stands for; one with an ordinary weight as it is."""
    if matrix.made_of is not None:
        return matrix
    weight = matrix.read()
    if _is_ordinary(weight) or (unpack := materializer(weight)) is None:
        return matrix
    shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
    return replace(
        matrix,
        read=lambda: unpack(matrix.read()),
        made_of=lambda: (matrix.read(),),
        outline=partial(torch.empty, shape, device="meta"),
    )


def _is_ordinary(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1
