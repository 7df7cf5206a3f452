"""Which matrices a module holds: the built-in extractor.

Layers that it does not know are no loss: `discover` reads any 2-D parameter that nobody has claimed as one matrix.
"""

from collections.abc import Callable, Sequence

from torch import nn

from esdmon.weights.layers.attention import extract_attention
from esdmon.weights.layers.experts import extract_experts
from esdmon.weights.layers.lora import extract_lora
from esdmon.weights.layers.torch_nn import extract_torch
from esdmon.weights.matrix import Matrix

Extractor = Callable[[str, nn.Module], Sequence[Matrix] | None]
"""`(canonical name, module) -> matrices`, or None for a kind of module that it does not know."""


def extract(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """The matrices of a layer of torch, of experts, of attention with fused projections, or of a LoRA layer."""
    kinds = (extract_lora, extract_experts, extract_torch, extract_attention)
    return next((matrices for kind in kinds if (matrices := kind(name, module)) is not None), None)
