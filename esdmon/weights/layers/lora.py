"""LoRA layers of peft: the base, what each adapter adds to it, and the sum.

An adapter adds ΔW = s·B·A of rank r, s its scaling, B (outputs, r), A (r, inputs). With A = R·Q, Q of orthonormal
rows, B·R (outputs × r) has the singular values of B·A: all that are not zero by construction. So a delta is an N × r
matrix here, N the longer side of W, and never a large one of low rank. Known by its attributes, without importing peft.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.device.readable import check_readable
from esdmon.weights.device.update_ratio import some
from esdmon.weights.layers.torch_nn import extract_torch
from esdmon.weights.matrix import Matrix, UnreadableError

_MERGED = "the sum of base and adapters is read on request: '*/merged' in layers="


def extract_lora(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """`name` with the view base, `name/lora.<adapter>` for each adapter, `name/merged` on request."""
    if not (type(module).__module__.startswith("peft.") and hasattr(module, "base_layer")):
        return None
    if not hasattr(module, "lora_A"):
        return None
    layer: Any = module.base_layer
    base = extract_torch(name, layer)
    if base is None and isinstance(getattr(layer, "weight", None), Tensor):
        base = [Matrix(name, partial(getattr, layer, "weight"), stacks.linear)]
    apart = [
        replace(
            matrix,
            read=partial(_unmerged, module, matrix.read),
            made_of=matrix.parameters,
            outline=matrix.read,
            view="base",
        )
        for matrix in base or ()
        if not matrix.detail
    ]
    deltas = list(_deltas(name, module))
    merged = [
        replace(
            matrix,
            name=f"{matrix.name}/merged",
            read=partial(_merged, module, matrix.read),
            on_request=_MERGED,
            detail=True,
            view="merged",
        )
        for matrix in apart[:1]
    ]
    return apart + deltas + merged


def low_rank(a: Tensor, b: Tensor) -> Tensor:
    """An N × r stack, N the longer side of b·a, with the singular values of b·a: b (outputs, r), a (r, inputs).

    Raises:
        UnreadableError: where one of them is zero, as b is at the start.
    """
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    if not bool(b.any()) or not bool(a.any()):
        raise UnreadableError("skipped", "inactive: this adapter adds nothing yet (lora_B is zero)")
    if a.shape[1] > b.shape[0]:
        a, b = b.mT, a.mT
    r: Tensor = torch.linalg.qr(a.mT, mode="r").R
    return (b @ r.mT).unsqueeze(0)


def _deltas(name: str, module: Any) -> Iterator[Matrix]:
    factors: dict[str, tuple[nn.Module | Tensor, nn.Module | Tensor]] = {}
    for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        firsts, seconds = getattr(module, first, {}), getattr(module, second, {})
        factors |= {adapter: (firsts[adapter], seconds[adapter]) for adapter in firsts}
    for adapter in factors:
        made_of = partial(_weights, *factors[adapter])
        a, b = made_of()
        n, r = max(a[0].numel(), b.shape[0]), min(a.shape[0], a[0].numel(), b.shape[0])
        yield Matrix(
            f"{name}/lora.{adapter}",
            partial(_delta, module, adapter, made_of),
            stacks.as_it_is,
            made_of=made_of,
            outline=partial(torch.empty, 1, n, r, device="meta"),
            view="lora-delta",
            probe=partial(_of_both, module, adapter, made_of),
        )


def _weights(*factors: nn.Module | Tensor) -> tuple[Tensor, ...]:
    return tuple(factor if isinstance(factor, Tensor) else factor.get_parameter("weight") for factor in factors)


def _delta(module: Any, adapter: str, made_of: Callable[[], tuple[Tensor, ...]]) -> Tensor:
    a, b = (weight.detach().flatten(1) for weight in made_of())
    if a.shape[0] != b.shape[1]:
        raise UnreadableError("skipped", "the factors of this adapter do not make one product")
    return low_rank(a, b).mul(float(module.scaling[adapter]))


def _of_both(module: Any, adapter: str, made_of: Callable[[], tuple[Tensor, ...]], size: int) -> Tensor:
    """Elements of both factors: their product moves when one of them does."""
    a, b = (weight.detach() for weight in made_of())
    for factor in (a, b):
        check_readable(factor)
    count = min(max(1, size // 2), a.numel(), b.numel())
    return torch.stack([some(a, count), some(b, count).to(a) * float(module.scaling[adapter])])


def _unmerged(module: Any, read: Callable[[], Tensor]) -> Tensor:
    if module.merged:
        raise UnreadableError("skipped", "an adapter is merged into it: unmerge_adapter() to read it apart")
    return read()


def _merged(module: Any, read: Callable[[], Tensor]) -> Tensor:
    weight = read().detach()
    for adapter in module.active_adapters:
        if adapter in getattr(module, "lora_magnitude_vector", {}):
            raise UnreadableError("skipped", "the merged weight of this kind of adapter is not read")
        if adapter in module.lora_A:
            weight = weight + module.get_delta_weight(adapter)
    return weight
