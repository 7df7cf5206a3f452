"""Name the kind of layer of a matrix, from the way it is read, so that modules and files give the same name."""

import re
from contextlib import suppress
from functools import partial

from esdmon.weights import stacks
from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix
from esdmon.weights.optional_layers import HEAD, ROUTER

_REQUESTED = {EMBEDDING: "embedding", HEAD: "head", ROUTER: "router"}
_VIEWS = {"lora-delta": "lora", "qk": "attention", "ov": "attention"}
_RECURRENT = re.compile(r"(^|\.)weight_(ih|hh|hr)(_l\d+(_reverse)?)?(/\w)?$")
_ATTENTION = re.compile(
    r"(attn|attention)(?!.*\.(mlp|ffn?|feed_?forward)(\.|$))|/[qkv](/|$)|(^|\.)[qkvo](_proj)?(/|$)", re.IGNORECASE
)
"""Names of projections of attention, but of no MLP in such a block, as `attn_layers.1.ff.0`, `cross_attn.0.mlp.fc1`."""


def layer_type_of(matrix: Matrix) -> str:
    """Return the kind of a matrix.

    One of `linear`, `conv1d`, `conv2d`, `conv3d`, `attention`, `recurrent`, `experts`, `lora`, `embedding`, `head` and
    `router`.

    A projection of attention is known by its name, since files have nothing else; other matrices are `linear`.
    """
    if matrix.on_request in _REQUESTED:
        return _REQUESTED[matrix.on_request]
    if matrix.view in _VIEWS:
        return _VIEWS[matrix.view]
    reads_as = matrix.to_stack.func if isinstance(matrix.to_stack, partial) else matrix.to_stack
    if reads_as in (stacks.convolution, stacks.convolution_inputs_first, stacks.flattened, stacks.of_layers):
        of_layers = int(reads_as is stacks.of_layers)
        return f"conv{_dimensions(matrix) - 2 - of_layers}d"
    if ".experts" in f".{matrix.name}":
        return "experts"
    if _RECURRENT.search(matrix.name):
        return "recurrent"
    return "attention" if _ATTENTION.search(matrix.name) else "linear"


def _dimensions(matrix: Matrix) -> int:
    with suppress(Exception):  # the reading reports why
        return (matrix.outline or matrix.read)().ndim
    return 4
