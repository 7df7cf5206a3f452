"""Extract the LoRA layers of loralib, LitGPT, torchtune, torchtitan and their kind: one adapter, without a name.

A is `lora_A` or `lora_a`, B is `lora_B` or `lora_b`, each a parameter or a linear layer. Beside them is the base
weight, or a layer with it. The adapter adds s·B·A to the base weight, as in `esdmon.weights.layers.lora`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights.layers.lora import delta, own_weight
from esdmon.weights.matrix import Matrix

FACTORS = {"lora_A": "lora_B", "lora_a": "lora_b"}
_SCALES = ("scaling", "_lora_scaling")  # of loralib and LitGPT, and of torchtitan


def extract_plain_lora(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return `name` and `name/lora`; None for a module without factors that make a matrix of the weight's shape."""
    for first, second in FACTORS.items():
        a, b = _weight_of(module, first), _weight_of(module, second)
        if a is None or b is None:
            continue
        factors, scale = partial(_factors, module, first, second), partial(_scale, module)
        parts = _parts_of_fused(module, a.shape, b.shape)
        if parts:
            return [*own_weight(name, module), *_deltas_of_parts(f"{name}/lora", factors, scale, parts)]
        weight = getattr(module, "weight", None)
        if not are_factors(a.shape, b.shape, weight.shape if isinstance(weight, Tensor) else None):
            return None
        return [*own_weight(name, module), delta(f"{name}/lora", factors, scale)]
    return None


def are_factors(a: torch.Size, b: torch.Size, weight: torch.Size | None) -> bool:
    """Return whether B·A is a matrix of the shape of a weight, or of its transpose.

    In loralib's convolutions, and in a file of the layers of loralib and LitGPT that compute q, k and v, it is not.

    Args:
        a: (r, inputs).
        b: (outputs, r).
        weight: (outputs, inputs) or (inputs, outputs); None if it is in another layer.
    """
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return False
    return weight is None or tuple(weight) in ((b[0], a[1]), (a[1], b[0]))


_Parts = dict[str, tuple[slice, slice]]
"""Label of a projection -> its rows of A, and its rows of B."""


def _parts_of_fused(module: Any, a: torch.Size, b: torch.Size) -> _Parts:
    """Return the projections of a layer that computes q, k and v at once; empty for any other layer.

    Those that `enable_lora` names have factors, one behind the other: A is (r · projections, inputs), and B has the
    outputs of all. LitGPT says how many outputs each has; in loralib they are equal.
    """
    enabled = getattr(module, "enable_lora", None)
    if not isinstance(enabled, list | tuple) or len(enabled) != len("qkv") or len(a) != 2 or len(b) != 2:
        return {}
    labels = [label for label, is_enabled in zip("qkv", enabled, strict=True) if is_enabled]
    sizes = getattr(module, "qkv_shapes", None) or [b[0] // max(1, len(labels))] * len(labels)
    if len(sizes) != len(labels) or sum(sizes) != b[0] or len(labels) * b[1] != a[0]:
        return {}
    ranks = pairwise(range(0, a[0] + 1, b[1]))
    outputs = pairwise(accumulate(sizes, initial=0))
    return {label: (slice(*of_a), slice(*of_b)) for label, of_a, of_b in zip(labels, ranks, outputs, strict=True)}


def _deltas_of_parts(
    name: str, factors: Callable[[], tuple[Tensor, ...]], scale: Callable[[], float], parts: _Parts
) -> list[Matrix]:
    return [
        replace(delta(f"{name}.{label}", partial(_part, factors, part), scale), made_of=factors)
        for label, part in parts.items()
    ]


def _part(factors: Callable[[], tuple[Tensor, ...]], part: tuple[slice, slice]) -> tuple[Tensor, ...]:
    a, b = factors()
    return a[part[0]], b[part[1]]


def _weight_of(module: nn.Module, name: str) -> Tensor | None:
    held = getattr(module, name, None)
    weight = held if isinstance(held, Tensor) else getattr(held, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _factors(module: Any, *names: str) -> tuple[Tensor, ...]:
    return tuple(weight for name in names if (weight := _weight_of(module, name)) is not None)


def _scale(module: nn.Module) -> float:
    """Return s, which torchtune has as α and r; 1 where the layer does not say it."""
    for name in _SCALES:
        if isinstance(scale := getattr(module, name, None), int | float):
            return float(scale)
    alpha, rank = getattr(module, "alpha", None), getattr(module, "rank", None)
    return alpha / rank if isinstance(alpha, int | float) and isinstance(rank, int) and rank > 0 else 1.0
