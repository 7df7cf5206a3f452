"""Projections that one parameter holds together, such as q, k and v.

How a fused weight is laid out is known to the module that uses it, so it is written down here for the modules of
transformers and timm that have one, by class and attribute, each checked against its `forward`. A fused weight of
anybody else's is read as the one matrix that it is.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.heads import heads_of
from esdmon.weights.matrix import Matrix

Layout = Callable[[Any, Tensor], dict[str, Callable[[Tensor], Tensor]]]
"""`(module, weight) -> label -> to_stack`."""

_PACKAGES = ("transformers.", "timm.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v")
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


def extract_attention(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """The fused projections of a module, and the heads of what is attention."""
    size = next((vars(module)[key] for key in _HEAD_SIZES if isinstance(vars(module).get(key), int)), 0)
    found = []
    for attribute, dim, labels in _fused_in(module):
        read = partial(getattr, getattr(module, attribute), "weight")
        wholes = [Matrix(f"{name}.{attribute}/{label}", read, to_stack) for label, to_stack in labels.items()]
        found += [m for whole in wholes for m in (whole, *heads_of(whole, size=size if "v" in labels else 0, dim=dim))]
    for attribute in _PROJECTIONS if size else ():
        if _plain_weight(module, attribute) is not None:
            whole = Matrix(f"{name}.{attribute}", partial(getattr, getattr(module, attribute), "weight"), stacks.linear)
            found += [whole, *heads_of(whole, size=size)]
    return found or None


def _fused_in(module: nn.Module) -> Iterator[tuple[str, int, dict[str, Callable[[Tensor], Tensor]]]]:
    """(attribute, dimension of the stack along which the outputs lie, label -> to_stack) of each fused weight."""
    if not type(module).__module__.startswith(_PACKAGES):
        return
    for attribute, layout in _LAYOUTS.get(type(module).__name__, {}).items():
        weight = _plain_weight(module, attribute)
        if weight is not None:
            yield attribute, 2 if layout is _equal_columns else 1, layout(module, weight)


def _plain_weight(module: nn.Module, attribute: str) -> Tensor | None:
    """The 2-D weight of a child as its parent uses it; None where something stands between, such as a LoRA layer."""
    child = module._modules.get(attribute)  # noqa: SLF001 -- getattr would ask a user's own __getattr__
    weight = None if child is None else child._parameters.get("weight")  # noqa: SLF001
    return weight if weight is not None and weight.ndim == 2 else None


def _rows(labels: Sequence[str], sizes: Sequence[int]) -> dict[str, Callable[[Tensor], Tensor]]:
    bounds = pairwise(accumulate(sizes, initial=0))
    return {
        label: partial(stacks.some_rows, start=start, stop=stop)
        for label, (start, stop) in zip(labels, bounds, strict=True)
    }


def _equal_rows(*labels: str) -> Layout:
    return lambda _module, weight: _rows(labels, [weight.shape[0] // len(labels)] * len(labels))


def _alternating_rows(*labels: str, size: str) -> Layout:
    """q, k and v of one head, then those of the next; `size` is what the module calls the size of a head."""
    return lambda module, _weight: {
        label: partial(stacks.rows_of_heads, part=part, parts=len(labels), size=getattr(module, size))
        for part, label in enumerate(labels)
    }


def _equal_columns(module: Any, weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The Conv1D of GPT-2, which is a linear layer stored as (inputs, outputs); k and v alone in cross-attention."""
    width = module.split_size
    labels = "qkv"[-(weight.shape[1] // width) :]
    return {
        label: partial(stacks.some_columns, start=part * width, stop=(part + 1) * width)
        for part, label in enumerate(labels)
    }


def _grouped_query_rows(module: Any, _weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    keys = module.num_key_value_heads * module.head_dim
    return _rows("qkv", [module.config.num_attention_heads * module.head_dim, keys, keys])


_QKV = _equal_rows("q", "k", "v")
_GATE_UP = _equal_rows("gate", "up")
_LAYOUTS: dict[str, dict[str, Layout]] = {
    "Attention": {"c_attn": _equal_columns, "qkv": _QKV},  # the first GPT; timm's vision transformers
    "BarkSelfAttention": {"att_proj": _QKV},
    "BloomAttention": {"query_key_value": _alternating_rows("q", "k", "v", size="head_dim")},
    "DecisionTransformerGPT2Attention": {"c_attn": _equal_columns},
    "DiaMLP": {"gate_up_proj": _GATE_UP},
    "GPT2Attention": {"c_attn": _equal_columns},
    "GPTNeoXAttention": {"query_key_value": _alternating_rows("q", "k", "v", size="head_size")},
    "Glm4MLP": {"gate_up_proj": _GATE_UP},
    "GlmMLP": {"gate_up_proj": _GATE_UP},
    "ImageGPTAttention": {"c_attn": _equal_columns},
    "MambaMixer": {"in_proj": _equal_rows("x", "gate")},
    "ModernBertAttention": {"Wqkv": _QKV},
    "ModernBertMLP": {"Wi": _equal_rows("input", "gate")},
    "MptAttention": {"Wqkv": _QKV},
    "Phi3Attention": {"qkv_proj": _grouped_query_rows},
    "Phi3MLP": {"gate_up_proj": _GATE_UP},
    "Zamba2MLP": {"gate_up_proj": _GATE_UP},
}
