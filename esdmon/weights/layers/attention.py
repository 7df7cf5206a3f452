"""Attention: projections that share one parameter, such as q, k and v, and single heads.

Only the module that uses a fused weight knows its layout, so the layouts of the modules of transformers and timm are
listed here by class and attribute, each checked against its `forward`. A fused weight of any other module is split
where its name and the shapes beside it say how, as in a file, and else read as one matrix.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.errors import UnreadableError
from esdmon.torch_private import children_of, parameters_of
from esdmon.weights import stacks
from esdmon.weights.layers.products import Projection, products_of
from esdmon.weights.matrix import Matrix

ToStack = Callable[[Tensor], Tensor]
Layout = Callable[[Any, Tensor], dict[str, ToStack]]
"""`(module, weight) -> label -> to_stack`."""

_HEADS = "attention is read whole; head by head on request: '*/head.3' in layers="
_PACKAGES = ("transformers.", "timm.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin")
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "proj", "dense", "o", "Wo", "out_lin")
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


def extract_attention(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the fused projections of a module, the heads of attention and their products; None where it has none."""
    found = [*_projections_of(name, module)]
    if not found:
        return _extract_from_parent(name, module) or None
    matrices = [
        matrix
        for _, projection, size in found
        for matrix in (
            projection.weight,
            *heads_of(projection.weight, size=size, dim=2 if projection.outputs_last else 1),
        )
    ]
    projections = {letter: projection for letter, projection, _ in found}
    return [*matrices, *products_of(name, module, projections | output_of(name, module), size=_head_size(module))]


def _projections_of(name: str, module: nn.Module) -> Iterator[tuple[str, Projection, int]]:
    """Yield the letter of each projection, the projection, and the number of outputs of a head, 0 without heads."""
    size = _head_size(module)
    for fused in _find_fused(module):
        read = partial(getattr, getattr(module, fused.attribute), "weight")
        has_heads = "v" in fused.projections
        for label, to_stack in fused.projections.items():
            whole = Matrix(f"{name}.{fused.attribute}/{label}", read, to_stack)
            yield label, Projection(whole, outputs_last=fused.output_dim == 2), size if has_heads else 0
    for attribute in _PROJECTIONS if size else ():
        if _plain_weight(module, attribute) is not None:
            whole = Matrix(f"{name}.{attribute}", partial(getattr, getattr(module, attribute), "weight"), stacks.linear)
            yield attribute[0], Projection(whole), size


def _extract_from_parent(name: str, module: nn.Module) -> list[Matrix]:
    """Return the product of o and v of attention whose output is projected beside it, as in BERT and ViT."""
    children = children_of(module)
    output = children.get("output")
    for attribute in ("self", "attention"):
        inner = children.get(attribute)
        if inner is not None and output is not None:
            inside = f"{name}.{attribute}"
            projections = {letter: projection for letter, projection, _ in _projections_of(inside, inner)}
            products = products_of(
                inside, inner, projections | output_of(f"{name}.output", output), size=_head_size(inner)
            )
            return [product for product in products if product.view == "ov"]
    return []


def heads_of(whole: Matrix, *, size: int, dim: int = 1) -> list[Matrix]:
    """Return the heads of a projection, to be read on request.

    Args:
        whole: the projection.
        size: outputs of one head; none are returned where the outputs are not a multiple of it, or it is 0.
        dim: dimension of the stack along which the outputs lie.
    """
    try:
        outputs = whole.stack_shape()[dim]
    except UnreadableError:  # reported for the whole
        return []
    if size <= 0 or outputs % size:
        return []
    return [
        Matrix(
            f"{whole.name}/head.{head}",
            whole.read,
            partial(stacks.one_head, of=whole.to_stack, dim=dim, start=head * size, size=size),
            on_request=_HEADS,
            detail=True,
        )
        for head in range(outputs // size)
    ]


@dataclass(frozen=True, slots=True)
class _Fused:
    """One weight that holds several projections."""

    attribute: str
    projections: dict[str, ToStack]
    output_dim: int
    """Dimension of the stack along which the outputs lie."""


def _head_size(module: nn.Module) -> int:
    """Return the size of a head that a module declares; 0 where it declares none."""
    sizes = (vars(module).get(attribute) for attribute in _HEAD_SIZES)
    return next((size for size in sizes if isinstance(size, int)), 0)


def _find_fused(module: nn.Module) -> Iterator[_Fused]:
    if not type(module).__module__.startswith(_PACKAGES):
        yield from _find_by_name(module)
        return
    for attribute, layout in LAYOUTS.get(type(module).__name__, {}).items():
        weight = _plain_weight(module, attribute)
        projections = {} if weight is None else layout(module, weight)
        if projections:
            yield _Fused(attribute, projections, 2 if layout is equal_columns else 1)


def _find_by_name(module: nn.Module) -> Iterator[_Fused]:
    """Yield the fused weights of a module of any other package, by the names and shapes that a file has too."""
    children = children_of(module)
    attributes = BY_NAME.keys() & children.keys()
    shapes = {name: weight.shape for name, weight in parameters_of(module).items() if attributes and weight is not None}
    for attribute in children if attributes else ():
        weight = _plain_weight(module, attribute)
        if weight is not None:
            shapes[f"{attribute}.weight"] = weight.shape
    for attribute in sorted(attributes):
        shape = shapes.get(f"{attribute}.weight")
        projections = {} if shape is None else BY_NAME[attribute]("", shape, shapes)
        if projections:
            yield _Fused(attribute, projections, 2 if attribute == "c_attn" else 1)


def output_of(name: str, module: nn.Module) -> dict[str, Projection]:
    """Return the projection of a module's output as `o`; nothing where it is not known, or in another module."""
    for attribute in _OUTPUTS:
        if _plain_weight(module, attribute) is not None:
            child = getattr(module, attribute)
            whole = Matrix(f"{name}.{attribute}", partial(getattr, child, "weight"), stacks.linear)
            return {"o": Projection(whole, outputs_last=type(child).__name__ == "Conv1D")}
    return {}


def _plain_weight(module: nn.Module, attribute: str) -> Tensor | None:
    """Return the 2-D weight of a child; None where the child computes it from others, as a LoRA layer does."""
    child = children_of(module).get(attribute)  # getattr would call a user's own __getattr__
    weight = None if child is None else parameters_of(child).get("weight")
    return weight if weight is not None and weight.ndim == 2 else None


def rows(labels: Sequence[str], sizes: Sequence[int]) -> dict[str, ToStack]:
    """Return matrices that lie above each other in a weight, from their numbers of rows."""
    bounds = pairwise(accumulate(sizes, initial=0))
    return {
        label: partial(stacks.some_rows, start=start, stop=stop)
        for label, (start, stop) in zip(labels, bounds, strict=True)
    }


def _equal_rows(*labels: str) -> Layout:
    def layout(_module: Any, weight: Tensor) -> dict[str, ToStack]:
        return rows(labels, [weight.shape[0] // len(labels)] * len(labels))

    return layout


def _alternating_rows(*labels: str, size: str) -> Layout:
    """Return the layout of q, k and v of one head, then those of the next; `size` names the module's head size."""

    def layout(module: Any, _weight: Tensor) -> dict[str, ToStack]:
        take = partial(stacks.rows_of_heads, parts=len(labels), size=getattr(module, size))
        return {label: partial(take, part=part) for part, label in enumerate(labels)}

    return layout


def equal_columns(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split the Conv1D of GPT-2, a linear layer stored as (inputs, outputs); in cross-attention it has k and v only."""
    width = module.split_size
    labels = "qkv"[-(weight.shape[1] // width) :]
    return {
        label: partial(stacks.some_columns, start=part * width, stop=(part + 1) * width)
        for part, label in enumerate(labels)
    }


def _grouped_query_rows(module: Any, _weight: Tensor) -> dict[str, ToStack]:
    keys = module.num_key_value_heads * module.head_dim
    return rows("qkv", [module.config.num_attention_heads * module.head_dim, keys, keys])


def _thirds_without_key_dim(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split timm's `qkv`; modules that declare a `key_dim` (TinyViT, EfficientFormer) alternate by head instead."""
    return {} if hasattr(module, "key_dim") else _QKV(module, weight)


def _thirds_by_output(module: Any, weight: Tensor) -> dict[str, ToStack]:
    """Split timm's `qkv` where the output projection takes as many inputs as v has outputs; in GCViT some have no q."""
    output = _plain_weight(module, "proj")
    return _QKV(module, weight) if output is not None and weight.shape[0] == 3 * output.shape[1] else {}


_QKV = _equal_rows("q", "k", "v")
_OF_TIMM = (
    *("AttentionRope", "ChannelAttention", "ChannelAttentionV2", "CrossCovarianceAttn", "EvaAttention"),
    *("FactorAttnConvRelPosEnc", "LocallyGroupedAttn", "MHSA", "MaskUnitAttention", "MultiScaleAttention"),
    *(
        "RelPosAttention",
        "TalkingHeadAttn",
        "WindowAttention",
        "WindowAttentionGlobal",
        "WindowMultiHeadAttention",
        "XCA",
    ),
)
"""Classes of timm 1.0.31 whose `forward` takes q, k and v from thirds of `qkv`, besides `Attention`."""
_GATE_UP = _equal_rows("gate", "up")
_X_GATE = _equal_rows("x", "gate")
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
    "ModernBertDecoderMLP": {"Wi": _equal_rows("input", "gate")},
    "ModernBertMLP": {"Wi": _equal_rows("input", "gate")},
    "MptAttention": {"Wqkv": _QKV},
    "Phi3Attention": {"qkv_proj": _grouped_query_rows},
    "Phi4MultimodalAttention": {"qkv_proj": _grouped_query_rows},
    "Phi4MultimodalAudioMLP": {"gate_up_proj": _equal_rows("up", "gate")},
    "Zamba2MLP": {"gate_up_proj": _GATE_UP},
    **{f"{name}MLP": {"gate_up_proj": _GATE_UP} for name in _OF_GATE_UP},
    **{name: {"qkv": _thirds_by_output} for name in _OF_TIMM},
}
"""Class of a module -> attribute -> how the weight of that child is split."""

Shapes = Mapping[str, torch.Size]
"""Shape of each parameter of a module or a state dict, by name."""
ByName = Callable[[str, torch.Size, Shapes], dict[str, ToStack]]
"""`(path of the owner with its dot, shape, shapes of all)` to the projections; empty where the shapes contradict."""


def _conv1d(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v of GPT-2's Conv1D, (inputs, 3 · inputs); a linear layer would be (3 · inputs, inputs)."""
    is_fused = shape[1] == 3 * shape[0]
    is_cross_attention = shape[1] == 2 * shape[0] and f"{owner}q_attn.weight" in shapes  # k and v only
    if not is_fused and not is_cross_attention:
        return {}
    return equal_columns(SimpleNamespace(split_size=shape[0]), torch.empty(shape, device="meta"))


def _thirds(*outputs: str) -> ByName:
    def split(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
        is_attention = any(f"{owner}{output}.weight" in shapes for output in outputs) and shape[0] == 3 * shape[1]
        return rows("qkv", [shape[1]] * 3) if is_attention else {}

    return split


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
        return rows((first, second), [shape[0] // 2] * 2) if fits else {}

    return split


BY_NAME: dict[str, ByName] = {
    "att_proj": _thirds("out_proj"),
    "c_attn": _conv1d,
    "gate_up_proj": _halves("gate", "up", "down_proj.weight"),
    "in_proj": _halves("x", "gate", "A_log"),
    "qkv_proj": _grouped,
    "Wi": _halves("input", "gate", "Wo.weight"),
    "Wqkv": _thirds("Wo", "out_proj"),
}
"""Name of a child -> how its weight is split in any module that has what else such a module has."""
