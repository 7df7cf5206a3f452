"""Split fused weights: projections that share one parameter, such as q, k and v, or gate and up.

Only the module that uses a fused weight knows its layout, so the layouts of modules of transformers, timm and Megatron
are listed here by class and attribute, each checked against its `forward`. A fused weight of any other module, or of a
file without a configuration, is split if the layout follows from its name and the shapes of its neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.weights import stacks
from esdmon.weights.layers.quantized import is_of_bitsandbytes
from esdmon.weights.stacks import ToStack
from esdmon.weights.torch_private import children_of, parameters_of

Layout = Callable[[Any, Tensor], dict[str, ToStack]]
"""`(module, weight) -> label -> to_stack`."""
Shapes = Mapping[str, torch.Size]
"""Shape of each parameter of a module or a state dict, by name."""
ByName = Callable[[str, torch.Size, Shapes], dict[str, ToStack]]
"""`(path of the owner with its dot, shape, shapes of all)` to the projections; empty if the shapes contradict."""


def plain_weight(module: nn.Module, attribute: str) -> Tensor | None:
    """Return the 2-D weight of a child; None if the child computes it, as one of LoRA or bitsandbytes does."""
    child = children_of(module).get(attribute)  # getattr would call a user's own __getattr__
    weight = None if child is None or is_of_bitsandbytes(child) else parameters_of(child).get("weight")
    return weight if weight is not None and weight.ndim == 2 else None


def rows(labels: Sequence[str], sizes: Sequence[int]) -> dict[str, ToStack]:
    """Return matrices that lie above each other in a weight, from their numbers of rows."""
    bounds = pairwise(accumulate(sizes, initial=0))
    return {
        label: partial(stacks.some_rows, start=start, stop=stop)
        for label, (start, stop) in zip(labels, bounds, strict=True)
    }


def equal_rows(labels: Sequence[str], total: int) -> dict[str, ToStack]:
    """Return matrices that lie above each other in a weight of `total` rows, each in an equal part of them."""
    return rows(labels, [total // len(labels)] * len(labels))


def _equal_parts(*labels: str) -> Layout:
    return lambda _module, weight: equal_rows(labels, weight.shape[0])


def _alternating_rows(*labels: str, size: str) -> Layout:
    """Return the layout of q, k and v of one head, then those of the next; `size` names the module's head size."""

    def layout(module: Any, _weight: Tensor) -> dict[str, ToStack]:
        take = partial(stacks.rows_of_heads, parts=len(labels), size=getattr(module, size))
        return {label: partial(take, part=part) for part, label in enumerate(labels)}

    return layout


def equal_columns(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split the Conv1D of GPT-2, a linear layer stored as (inputs, outputs); in cross-attention it has k and v only."""
    return _columns(module.split_size, weight.shape[1])


def _columns(width: int, total: int) -> dict[str, ToStack]:
    """Return q, k and v, each of `width` of the `total` columns of a weight; where there are two, k and v."""
    labels = "qkv"[-(total // width) :]
    return {
        label: partial(stacks.some_columns, start=part * width, stop=(part + 1) * width)
        for part, label in enumerate(labels)
    }


def _grouped_query_rows(module: Any, _weight: Tensor) -> dict[str, ToStack]:
    keys = module.num_key_value_heads * module.head_dim
    return rows("qkv", [module.config.num_attention_heads * module.head_dim, keys, keys])


def _groups_of_rows(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split Megatron's `linear_qkv`: for each head of k and v the heads of q that share it, then that of k, that of v.

    A gate on the output of attention has as many heads as q, and is placed after q.
    """
    config = module.config
    groups = config.num_query_groups or config.num_attention_heads
    heads, size = config.num_attention_heads // groups, config.kv_channels
    has_gate = getattr(config, "attention_output_gate", False)
    widths = {"q": heads, "gate": heads, "k": 1, "v": 1} if has_gate else {"q": heads, "k": 1, "v": 1}
    parts = sum(widths.values())
    if weight.shape[0] != groups * parts * size:
        return {}
    take = partial(stacks.rows_of_heads, parts=parts, size=size)
    starts = accumulate(widths.values(), initial=0)
    return {
        label: partial(take, part=start, width=width)
        for (label, width), start in zip(widths.items(), starts, strict=False)
    }


def _gate_up_if_gated(module: Any, weight: Tensor) -> dict[str, ToStack]:
    return _GATE_UP(module, weight) if module.config.gated_linear_unit else {}


def _thirds_without_key_dim(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split timm's `qkv`; modules that declare a `key_dim` (TinyViT, EfficientFormer) alternate by head instead."""
    return {} if hasattr(module, "key_dim") else _QKV(module, weight)


def _thirds_by_output(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split timm's `qkv` as `thirds_by_output` does; in GCViT some attentions have no q."""
    output = plain_weight(module, "proj")
    return {} if output is None else thirds_by_output("", weight.shape, {"proj.weight": output.shape})


_QKV = _equal_parts("q", "k", "v")
_OF_TIMM = (
    "AttentionRope",
    "ChannelAttention",
    "ChannelAttentionV2",
    "CrossCovarianceAttn",
    "EvaAttention",
    "FactorAttnConvRelPosEnc",
    "LocallyGroupedAttn",
    "MHSA",
    "MaskUnitAttention",
    "MultiScaleAttention",
    "RelPosAttention",
    "TalkingHeadAttn",
    "WindowAttention",
    "WindowAttentionGlobal",
    "WindowMultiHeadAttention",
    "XCA",
)
"""Classes of timm 1.0.31 whose `forward` takes q, k and v from thirds of `qkv`, besides `Attention`."""
_GATE_UP = _equal_parts("gate", "up")
_X_GATE = _equal_parts("x", "gate")
_OF_GATE_UP = (
    "Dia",
    "Dots3NoteAudio",
    "Glm4",
    "Glm4vText",
    "GlmImageText",
    "Glm",
    "GlmOcrText",
    "Phi3",
    "Phi4Multimodal",
)
LAYOUTS: dict[str, dict[str, Layout]] = {
    "Attention": {"c_attn": equal_columns, "qkv": _thirds_without_key_dim},  # the first GPT; timm's
    "BarkSelfAttention": {"att_proj": _QKV},
    "BloomAttention": {"query_key_value": _alternating_rows("q", "k", "v", size="head_dim")},
    "DecisionTransformerGPT2Attention": {"c_attn": equal_columns},
    "GPT2Attention": {"c_attn": equal_columns},
    "GPTNeoXAttention": {"query_key_value": _alternating_rows("q", "k", "v", size="head_size")},
    "ImageGPTAttention": {"c_attn": equal_columns},
    "FalconMambaMixer": {"in_proj": _X_GATE},
    "JambaMambaMixer": {"in_proj": _X_GATE},
    "MambaMixer": {"in_proj": _X_GATE},
    "MiniMaxM3VLDenseMLP": {"gate_up_proj": _GATE_UP},
    "ModernBertAttention": {"Wqkv": _QKV},
    "ModernBertDecoderMLP": {"Wi": _equal_parts("input", "gate")},
    "ModernBertMLP": {"Wi": _equal_parts("input", "gate")},
    "MptAttention": {"Wqkv": _QKV},
    "MLP": {"linear_fc1": _gate_up_if_gated},  # Megatron's, also of an expert
    "Phi3Attention": {"qkv_proj": _grouped_query_rows},
    "Phi4MultimodalAttention": {"qkv_proj": _grouped_query_rows},
    "Phi4MultimodalAudioMLP": {"gate_up_proj": _equal_parts("up", "gate")},
    "SelfAttention": {"linear_qkv": _groups_of_rows},  # Megatron's
    "Zamba2MLP": {"gate_up_proj": _GATE_UP},
    **{f"{name}MLP": {"gate_up_proj": _GATE_UP} for name in _OF_GATE_UP},
    **{name: {"qkv": _thirds_by_output} for name in _OF_TIMM},
}
"""Class of a module -> attribute -> how the weight of that child is split."""


def _conv1d(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v of GPT-2's Conv1D, (inputs, 3 · inputs); a linear layer would be (3 · inputs, inputs)."""
    is_fused = shape[1] == 3 * shape[0]
    is_cross_attention = shape[1] == 2 * shape[0] and f"{owner}q_attn.weight" in shapes  # k and v only
    return _columns(shape[0], shape[1]) if is_fused or is_cross_attention else {}


def _thirds(*outputs: str) -> ByName:
    def split(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
        is_attention = any(f"{owner}{output}.weight" in shapes for output in outputs) and shape[0] == 3 * shape[1]
        return equal_rows("qkv", shape[0]) if is_attention else {}

    return split


def thirds_by_output(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v of timm's `qkv`, where its output projection `proj` has as many inputs as v has outputs."""
    output = shapes.get(f"{owner}proj.weight", ())
    return equal_rows("qkv", shape[0]) if len(output) == 2 and shape[0] == 3 * output[1] else {}


def _grouped(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v, where the inputs of the output projection are the outputs of q."""
    output = shapes.get(f"{owner}o_proj.weight", ())
    queries = output[1] if len(output) == 2 else 0
    keys = (shape[0] - queries) // 2
    return rows("qkv", [queries, keys, keys]) if queries and 0 < keys <= queries else {}


def _halves(first: str, second: str, beside: str) -> ByName:
    def split(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
        output = shapes.get(f"{owner}{beside}", ())
        fits = len(output) == 2 and (2 * output[1] == shape[0] or beside == "A_log")
        return equal_rows((first, second), shape[0]) if fits else {}

    return split


BY_NAME: dict[str, ByName] = {
    "att_proj": _thirds("out_proj"),
    "c_attn": _conv1d,
    "gate_up_proj": _halves("gate", "up", "down_proj.weight"),
    "in_proj": _halves("x", "gate", "A_log"),
    "linear_fc1": _halves("gate", "up", "linear_fc2.weight"),
    "qkv_proj": _grouped,
    "Wi": _halves("input", "gate", "Wo.weight"),
    "Wqkv": _thirds("Wo", "out_proj"),
}
"""Name of a child -> how its weight is split in a module of any class, if its neighbours have the expected shapes."""
