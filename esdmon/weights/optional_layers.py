"""What is not read unless it is asked for: embeddings, output heads and routers.

Their rows are tokens or experts, many of them seldom visited, and their spectra tell of frequencies in the data more
than of what a layer computes. Where there is a module, its type says what it is; of a mapping only names and shapes are
known.
"""

import math
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import nn

from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix

_HEAD = "output heads are read on request: name them in layers="
_ROUTER = "routers are read on request: name them in layers="
_HEAD_NAMES = {"lm_head", "embed_out"}
_EXPERT_NAME = re.compile(r"(expert_?)?\d+")
_EMBEDDING_NAME = re.compile(r"(^|_)emb(ed\w*)?(_|$)|^(wte|wpe|shared)$")


def with_roles(found: Sequence[Matrix], heads: Collection[int] = ()) -> list[Matrix]:
    """The matrices, those with such a role to be read on request.

    Args:
        found: all matrices of a model.
        heads: ids of parameters that the model itself calls its output.
    """
    reasons = _routers(found)
    entries = max((_rows(m) for m in found if m.on_request == EMBEDDING), default=0) or -1
    outputs = [m for m in found if not m.on_request and not m.detail and "/" not in m.name and _rows(m) == entries]
    for matrix in found:
        last = matrix.name.rpartition(".")[2]
        called = last in _HEAD_NAMES or any(id(parameter) in heads for parameter in matrix.parameters())
        # A layer of the same number of outputs as there are tokens may be one by chance, if there are several.
        if called or (len(outputs) == 1 and matrix is outputs[0]):
            reasons[matrix.name] = _HEAD
    return [replace(m, on_request=m.on_request or reasons.get(m.name, "")) for m in found]


def output_heads(model: nn.Module) -> set[int]:
    """Ids of the parameters that transformers' models name as their output."""
    heads = set()
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        head = None
        with suppress(Exception):  # a model that has none may say so by raising
            head = ask() if callable(ask) else None
        if isinstance(head, nn.Module):
            heads |= {id(parameter) for parameter in head.parameters() if parameter.ndim == 2}
    return heads


def is_embedding_by_name(name: str) -> bool:
    """Whether a module of a mapping is called as embeddings are: `embed_tokens`, `wte`, `tok_emb`."""
    return _EMBEDDING_NAME.search(name.rpartition(".")[2]) is not None


def _rows(matrix: Matrix) -> int:
    """Rows of a weight that is one slice; 0 for any other."""
    slices, rows, _ = matrix.stack_shape()
    return rows if slices == 1 else 0


def _routers(found: Sequence[Matrix]) -> dict[str, str]:
    """Name -> reason for each matrix beside some experts that has one output to an expert."""
    slices: dict[str, int] = {}
    numbers: dict[str, set[str]] = {}
    for matrix in found:
        block, inside, rest = f".{matrix.name}".partition(".experts.")
        if inside and not matrix.detail:
            numbers.setdefault(block, set()).add(rest.partition(".")[0])
            slices[block] = max(slices.get(block, 0), matrix.stack_shape()[0])
    counts = {
        block: max(slices[block], sum(_EXPERT_NAME.fullmatch(each) is not None for each in names))
        for block, names in numbers.items()
    }
    return {
        matrix.name: _ROUTER
        for block, count in counts.items()
        for matrix in found
        if f".{matrix.name}".startswith(f"{block}.")
        and not f".{matrix.name}".startswith(f"{block}.experts.")
        and count > 1
        and math.prod(matrix.stack_shape()[:2]) == count
    }
