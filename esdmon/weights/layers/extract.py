"""Extract the matrices of a module, for the built-in kinds of layers.

An unknown kind of layer is read as well, by the shapes of its parameters: see `discover`.
"""

from collections.abc import Callable, Sequence

from torch import nn

from esdmon.weights.layers.attention import extract_attention
from esdmon.weights.layers.experts import extract_experts
from esdmon.weights.layers.lora import extract_lora
from esdmon.weights.layers.plain_lora import extract_plain_lora
from esdmon.weights.layers.quantized_modules import extract_bitsandbytes, extract_quantized_module
from esdmon.weights.layers.torch_nn import extract_torch
from esdmon.weights.matrix import Matrix

Extractor = Callable[[str, nn.Module], Sequence[Matrix] | None]
"""`(canonical name, module) -> matrices`, or None for an unknown kind of module."""

_EXTRACTORS: tuple[Extractor, ...] = (
    extract_lora,
    extract_plain_lora,
    extract_quantized_module,
    extract_bitsandbytes,
    extract_experts,
    extract_torch,
    extract_attention,
)


def extract(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the matrices of a module of torch, quantised or not, experts, attention or LoRA; None for any other."""
    for extractor in _EXTRACTORS:
        matrices = extractor(name, module)
        if matrices is not None:
            return matrices
    return None
