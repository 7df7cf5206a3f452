"""Find the layers that are read only on request: embeddings, output heads and routers.

Their rows are tokens or experts, many of them rarely used, and their spectra depend more on frequencies in the data
than on the computation of the layer. A module is recognised by its type; in a mapping only names and shapes are known.
"""

import math
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import nn

from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix

HEAD = "output heads are read on request: name them in layers="
ROUTER = "routers are read on request: name them in layers="
_HEAD_NAMES = {"lm_head", "embed_out"}
_TRAINED_COPY = re.compile(r"\.(original_module|modules_to_save\.[^.]+)$")
"""Suffix in peft of the name of a layer of which a copy is trained (`modules_to_save`)."""
_EXPERT_NAME = re.compile(r"(expert_?)?\d+")
_EMBEDDING_NAME = re.compile(
    r"(^|_)emb(ed\w*|d)?(_|$)|^(wte|wpe|shared)$|(^|_)(tokens?|codebooks?|quer(y|ies)_feat(ure)?s?)$"
    r"|(^|_)pos(ition(al)?)?_?enc(odings?)?(_|$)",
    re.IGNORECASE,
)
_LINEAR_NAME = re.compile(r"(^|_)(patch\w*|proj\w*|linear|dense|fc|mlp|mapper|mapping)(_|$)")
"""Names of linear layers into or out of embeddings, and of patches."""
_OF_SYMBOLS = {
    "word",
    "token",
    "class",
    "label",
    "style",
    "mode",
    "type",
    "row",
    "column",
    "query",
    "queries",
    "position",
}
"""Inputs of an embedder with one row for each; others, such as `x_embedder`, are linear layers."""
_EMBEDDING_PARENT = re.compile(r"\w*emb(edding)?s?_(dict|bags?|tables?|collection|l)")
"""Names of containers of embeddings that are named by their features, as in recommenders."""


def mark_optional(found: Sequence[Matrix], heads: Collection[int]) -> list[Matrix]:
    """Return the matrices, with output heads and routers marked as read on request.

    Args:
        found: all matrices of a model.
        heads: ids of the parameters that the model itself names as its output, from `output_heads`.
    """
    reasons = _find_routers(found)
    n_tokens = max((_rows(matrix) for matrix in found if matrix.on_request == EMBEDDING), default=0)
    as_wide = [matrix for matrix in found if n_tokens and _may_be_head(matrix) and _rows(matrix) == n_tokens]
    # One layer with as many outputs as there are tokens is the head; of several, some are as wide by chance.
    head = as_wide[0] if len(as_wide) == 1 and not _is_hidden(n_tokens, found) else None
    for matrix in found:
        if matrix.view == "lora-delta":  # an adapter of the head is trained, for a task
            continue
        last = _TRAINED_COPY.sub("", matrix.name).rpartition(".")[2]
        is_known = last in _HEAD_NAMES or any(id(parameter) in heads for parameter in matrix.whole_parameters())
        if is_known or matrix is head:
            reasons[matrix.name] = HEAD
    return [replace(each, on_request=each.on_request or reasons.get(each.name, "")) for each in found]


def output_heads(model: nn.Module) -> set[int]:
    """Return ids of the parameters that models of transformers name as their output."""
    heads = set()
    for module in model.modules():
        head = None
        with suppress(Exception):  # a model without a head may raise, and so may a `__getattr__` of the user's own
            getter = getattr(module, "get_output_embeddings", None)
            head = getter() if callable(getter) else None
        if isinstance(head, nn.Module):
            heads |= {id(parameter) for parameter in head.parameters() if parameter.ndim == 2}
    return heads


def is_embedding_name(name: str) -> bool:
    """Return whether a name is usual for embeddings: `embed_tokens`, `wte`, `tok_emb`, `embeddings.3` of a list."""
    parts = [part for part in name.split(".") if not part.isdecimal()]
    last = parts[-1] if parts else ""
    if _LINEAR_NAME.search(last) or (last.endswith("_embedder") and last.split("_")[-2] not in _OF_SYMBOLS):
        return False
    return _EMBEDDING_NAME.search(last) is not None or any(map(_EMBEDDING_PARENT.fullmatch, parts[-2:-1]))


def _may_be_head(matrix: Matrix) -> bool:
    return not matrix.on_request and not matrix.detail and "/" not in matrix.name


def _rows(matrix: Matrix) -> int:
    """Return the rows of a weight that is one slice; 0 for any other."""
    size = matrix.size()
    return size.rows if size.slices == 1 else 0


def _is_hidden(width: int, found: Sequence[Matrix]) -> bool:
    """Return whether a layer has inputs of this width, and no embedding such outputs: a hidden layer makes them."""
    inputs = {(matrix.on_request == EMBEDDING, matrix.size().columns) for matrix in found}
    return (False, width) in inputs and (True, width) not in inputs


def _find_routers(found: Sequence[Matrix]) -> dict[str, str]:
    """Return name -> reason for each matrix beside a block of experts that has one output for each expert."""
    routers: dict[str, str] = {}
    for block, n_experts in _count_experts(found).items():
        for matrix in found:
            name = f".{matrix.name}"
            beside = name.startswith(f"{block}.") and not name.startswith(f"{block}.experts.")
            if beside and n_experts > 1 and math.prod(matrix.stack_shape()[:2]) == n_experts:
                routers[matrix.name] = ROUTER
    return routers


def _count_experts(found: Sequence[Matrix]) -> dict[str, int]:
    """Return block -> number of its experts: the slices of one weight, or modules that are numbered."""
    slices: dict[str, int] = {}
    modules: dict[str, set[str]] = {}
    for matrix in found:
        block, inside, rest = f".{matrix.name}".partition(".experts.")
        if inside and not matrix.detail:
            slices[block] = max(slices.get(block, 0), matrix.size().slices)
            modules.setdefault(block, set()).add(rest.partition(".")[0])
    return {
        block: max(slices[block], sum(_EXPERT_NAME.fullmatch(name) is not None for name in names))
        for block, names in modules.items()
    }
