"""Extract the LoRA layers of peft: the base weight, the ΔW of each adapter, and the sum.

An adapter adds ΔW = s·B·A of rank r, where s is its scaling, B is (outputs, r) and A is (r, inputs). With A = R·Q, Q of
orthonormal rows, B·R (outputs × r) has the singular values of B·A: all that are not zero by construction. So a delta is
an N × r matrix here, N the longer side of W, and never a large one of low rank. The layers are recognised by their
attributes, without importing peft.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.errors import UnreadableError
from esdmon.records import INACTIVE
from esdmon.weights import stacks
from esdmon.weights.device.sample import sample_tensor
from esdmon.weights.layers.quantized import materialize
from esdmon.weights.layers.quantized_modules import extract_bitsandbytes
from esdmon.weights.layers.torch_nn import extract_torch
from esdmon.weights.matrix import Matrix
from esdmon.weights.validation import check_readable

_MERGED = "the sum of base and adapters is read on request: '*/merged' in layers="
_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_SINGULAR_VALUES = "lora_E"  # of AdaLoRA, (r, 1): ΔW = s·B·diag(E)·A


def extract_lora(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return `name` with the view base, `name/lora.<adapter>` for each adapter, and `name/merged` on request.

    None for a module that is not a LoRA layer of peft.
    """
    if not (type(module).__module__.startswith("peft.") and hasattr(module, "base_layer")):
        return None
    if not hasattr(module, "lora_A"):
        return None
    bases = [_base(module, matrix) for matrix in own_weight(name, module.base_layer) if not matrix.detail]
    deltas = _deltas(name, module)
    return bases + deltas + [_merged(module, matrix, deltas) for matrix in bases[:1]]


def low_rank(a: Tensor, b: Tensor) -> Tensor:
    """Return an N × r stack with the singular values of b·a, N the longer side of b·a.

    Args:
        a: (r, inputs), or (slices, r, inputs).
        b: (outputs, r), or (slices, outputs, r).

    Raises:
        UnreadableError: if one of them is zero, as b is before training.
    """
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    if not bool(b.any()) or not bool(a.any()):
        raise UnreadableError("skipped", INACTIVE)
    if a.shape[-1] > b.shape[-2]:
        a, b = b.mT, a.mT
    r: Tensor = torch.linalg.qr(a.mT, mode="r").R
    product: Tensor = b @ r.mT
    return product if product.ndim == 3 else product.unsqueeze(0)


def factors_of_experts(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the factors of each expert, (experts, r, inputs) and (experts, outputs, r).

    peft keeps those of all experts of a parameter in one weight each: in A the ranks of an expert lie together, in B
    those of one rank.

    Args:
        a: (experts · r, inputs).
        b: (outputs, r · experts).
        count: number of experts.
    """
    return a.reshape(count, -1, a.shape[-1]), b.reshape(b.shape[0], -1, count).permute(2, 0, 1)


def own_weight(name: str, layer: Any) -> Sequence[Matrix]:
    """Return the matrices of a layer without its adapters: as a layer of torch, packed or not, or else its `weight`."""
    matrices = extract_bitsandbytes(name, layer) or extract_torch(name, layer)
    if matrices is None and isinstance(getattr(layer, "weight", None), Tensor):
        matrices = [Matrix(name, partial(getattr, layer, "weight"), stacks.linear)]
    return [materialize(matrix) for matrix in matrices or ()]


def _base(module: nn.Module, matrix: Matrix) -> Matrix:
    return replace(
        matrix,
        read=partial(_read_base, module, matrix.read),
        made_of=matrix.parameters,
        outline=matrix.outline or matrix.read,
        view="base",
    )


def _merged(module: nn.Module, base: Matrix, deltas: Sequence[Matrix]) -> Matrix:
    return replace(
        base,
        name=f"{base.name}/merged",
        read=partial(_read_merged, module, base.read),
        made_of=partial(_behind, base, *deltas),
        on_request=_MERGED,
        detail=True,
        view="merged",
        reference=base.read,
    )


def _behind(*matrices: Matrix) -> tuple[Tensor, ...]:
    return tuple(parameter for matrix in matrices for parameter in matrix.parameters())


def _deltas(name: str, module: Any) -> list[Matrix]:
    """Return a matrix for each adapter; one of a parameter that is no `weight`, such as experts, has its name."""
    parameter = getattr(module, "parameter_name", "weight")
    name = name if parameter == "weight" else f"{name}.{parameter}"
    found: dict[str, Matrix] = {}
    for first, second in _FACTORS:
        firsts, seconds = getattr(module, first, {}), getattr(module, second, {})
        for adapter in firsts:
            kept_in = [firsts, seconds]
            if adapter in getattr(module, _SINGULAR_VALUES, {}):
                kept_in += [module.lora_E, module.ranknum]
            factors = partial(_weights, kept_in, adapter)
            scale = partial(_scale, module, adapter)
            found[adapter] = delta(f"{name}/lora.{adapter}", factors, scale, count=_experts_of(module))
    return list(found.values())


def delta(
    name: str, factors: Callable[[], tuple[Tensor, ...]], scale: Callable[[], float], *, count: int = 1
) -> Matrix:
    """Return the ΔW of an adapter, s·B·A, as a matrix.

    Args:
        name: of the matrix.
        factors: A and B, and of AdaLoRA the singular values, and the rank that `scale` reads, which may be a shard too.
        scale: s.
        count: of experts whose factors lie in A and B.
    """
    a, b, *_ = factors()
    n, r = max(a[0].numel(), b.shape[0]), min(a.shape[0] // count, a[0].numel(), b.shape[0])
    return Matrix(
        name,
        partial(_read_delta, factors, scale, count),
        stacks.identity,
        made_of=factors,
        outline=partial(torch.empty, count, n, r, device="meta"),
        view="lora-delta",
        probe=partial(_sample_factors, factors, scale),
    )


def _experts_of(module: Any) -> int:
    """Return the number of matrices in a parameter with adapters: more than 1 for pooled experts."""
    count = getattr(module, "num_experts", 1) if hasattr(module, "parameter_name") else 1
    return count if isinstance(count, int) and count > 1 else 1


def _weights(kept_in: Sequence[Any], adapter: str) -> tuple[Tensor, ...]:
    """Return the factors of an adapter, looked up at each call, since an outline substitutes values for parameters.

    Each is a layer, or of embeddings and AdaLoRA a parameter.
    """
    factors = (factors[adapter] for factors in kept_in)
    return tuple(factor if isinstance(factor, Tensor) else factor.get_parameter("weight") for factor in factors)


def _read_delta(factors: Callable[[], tuple[Tensor, ...]], scale: Callable[[], float], count: int) -> Tensor:
    a, b, *singular = (weight.detach().flatten(1) for weight in factors()[:3])
    if a.shape[0] != b.shape[1]:
        raise UnreadableError("skipped", f"its factors cannot be multiplied: {tuple(b.shape)} by {tuple(a.shape)}")
    if count > 1:
        return low_rank(*factors_of_experts(a, b, count)).mul(scale())
    return low_rank(a * singular[0] if singular else a, b).mul(scale())


def _scale(module: Any, adapter: str) -> float:
    scale = float(module.scaling[adapter])
    if adapter in getattr(module, _SINGULAR_VALUES, {}):
        return adalora_scale(scale, float(module.ranknum[adapter]))
    return scale


def adalora_scale(alpha: float, rank: float) -> float:
    """Return the factor of B·diag(E)·A in AdaLoRA, as peft computes it."""
    return alpha / (rank + 1e-5)


def _sample_factors(factors: Callable[[], tuple[Tensor, ...]], scale: Callable[[], float], size: int) -> Tensor:
    """Return elements of both factors: their product changes when one of them does."""
    a, b, *_ = (weight.detach() for weight in factors())
    check_readable(a)
    check_readable(b)
    count = min(max(1, size // 2), a.numel(), b.numel())
    scaled = sample_tensor(b, count).to(a) * scale()
    return torch.stack([sample_tensor(a, count), scaled])


def _read_base(module: Any, read: Callable[[], Tensor]) -> Tensor:
    # Without the property `merged`, since a module that is rebuilt from a pickle has only attributes.
    if module.merged_adapters if hasattr(module, "merged_adapters") else module.merged:
        raise UnreadableError(
            "skipped", "an adapter is merged into this weight: call unmerge_adapter() to read the base"
        )
    return read()


def _read_merged(module: Any, read: Callable[[], Tensor]) -> Tensor:
    weight = read().detach()
    if not hasattr(module, "get_delta_weight"):
        raise UnreadableError("skipped", "the sum is computed by code of peft, which a pickled model is read without")
    for adapter in module.active_adapters:
        if adapter in getattr(module, "lora_magnitude_vector", {}):
            raise UnreadableError("skipped", "the merged weight of a DoRA adapter is not read: it is not a plain sum")
        if adapter in module.lora_A:
            weight = weight + module.get_delta_weight(adapter)
    return weight
