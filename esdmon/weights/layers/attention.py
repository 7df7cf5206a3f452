"""Extract attention layers: projections, also fused ones, single heads, and products of projections.

A fused weight is split if `layers.fused` knows its layout, and otherwise read as one matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from esdmon.weights import stacks
from esdmon.weights.layers.fused import BY_NAME, LAYOUTS, equal_columns, plain_weight
from esdmon.weights.layers.products import Projection, products_of
from esdmon.weights.matrix import Matrix
from esdmon.weights.stacks import ToStack
from esdmon.weights.torch_private import children_of, parameters_of

_HEADS = "attention is read whole; head by head on request: '*/head.3' in layers="
_PACKAGES = ("transformers.", "timm.", "megatron.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin")
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "proj", "dense", "o", "Wo", "out_lin", "linear_proj")
_HEAD_SIZES = (
    "head_dim",
    "attention_head_size",
    "head_size",
    "key_value_proj_dim",
    "hidden_size_per_attention_head",  # of Megatron
)


def extract_attention(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the fused projections of a module, the heads of attention and their products; None if it has none."""
    found = [*_projections_of(name, module)]
    if not found:
        return _extract_from_parent(name, module) or None
    matrices = [matrix for _, projection in found for matrix in (projection.weight, *heads_of(projection))]
    return [*matrices, *products_of(name, module, dict(found) | output_of(name, module))]


def _projections_of(name: str, module: nn.Module) -> Iterator[tuple[str, Projection]]:
    """Yield the letter of each projection, and the projection."""
    size = _head_size(module)
    for fused in _find_fused(module):
        read = partial(getattr, getattr(module, fused.attribute), "weight")
        head_size = size if "v" in fused.projections else 0
        for label, to_stack in fused.projections.items():
            whole = Matrix(f"{name}.{fused.attribute}/{label}", read, to_stack)
            yield label, Projection(whole, outputs_last=fused.outputs_last, head_size=head_size)
    for attribute in _PROJECTIONS if size else ():
        if plain_weight(module, attribute) is not None:
            whole = Matrix(f"{name}.{attribute}", partial(getattr, getattr(module, attribute), "weight"), stacks.linear)
            yield attribute[0], Projection(whole, head_size=size)


def _extract_from_parent(name: str, module: nn.Module) -> list[Matrix]:
    """Return the product of o and v for attention with its output projection in a sibling, as in BERT and ViT."""
    children = children_of(module)
    output = children.get("output")
    for attribute in ("self", "attention"):
        inner = children.get(attribute)
        if inner is not None and output is not None:
            inside = f"{name}.{attribute}"
            projections = dict(_projections_of(inside, inner)) | output_of(f"{name}.output", output)
            products = products_of(inside, inner, projections)
            return [product for product in products if product.view == "ov"]
    return []


def heads_of(projection: Projection) -> list[Matrix]:
    """Return the heads of a projection, to be read on request; none if its outputs are not a multiple of their size."""
    whole, size, (outputs, _) = projection.weight, projection.head_size, projection.shape()
    if size <= 0 or outputs % size:
        return []
    take = partial(stacks.one_head, of=whole.to_stack, dim=2 if projection.outputs_last else 1, size=size)
    return [
        Matrix(
            f"{whole.name}/head.{head}",
            whole.read,
            partial(take, start=head * size),
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
    outputs_last: bool
    """True if the columns of the weight are the outputs, instead of the rows."""


def _head_size(module: nn.Module) -> int:
    """Return the size of a head that a module declares; 0 if it declares none."""
    sizes = (vars(module).get(attribute) for attribute in _HEAD_SIZES)
    return next((size for size in sizes if isinstance(size, int)), 0)


def _find_fused(module: nn.Module) -> Iterator[_Fused]:
    if not type(module).__module__.startswith(_PACKAGES):
        yield from _find_by_name(module)
        return
    for attribute, layout in LAYOUTS.get(type(module).__name__, {}).items():
        weight = plain_weight(module, attribute)
        projections = {} if weight is None else layout(module, weight)
        if projections:
            yield _Fused(attribute, projections, outputs_last=layout is equal_columns)


def _find_by_name(module: nn.Module) -> Iterator[_Fused]:
    """Yield the fused weights of a module of any other package, by the names and shapes that a file has too."""
    children = children_of(module)
    attributes = BY_NAME.keys() & children.keys()
    if not attributes:
        return
    shapes = {name: weight.shape for name, weight in parameters_of(module).items() if weight is not None}
    for attribute in children:
        weight = plain_weight(module, attribute)
        if weight is not None:
            shapes[f"{attribute}.weight"] = weight.shape
    for attribute in sorted(attributes):
        shape = shapes.get(f"{attribute}.weight")
        projections = {} if shape is None else BY_NAME[attribute]("", shape, shapes)
        if projections:
            yield _Fused(attribute, projections, outputs_last=attribute == "c_attn")


def output_of(name: str, module: nn.Module) -> dict[str, Projection]:
    """Return the projection of a module's output as `o`; nothing if it is not known, or in another module."""
    for attribute in _OUTPUTS:
        if plain_weight(module, attribute) is not None:
            child = getattr(module, attribute)
            whole = Matrix(f"{name}.{attribute}", partial(getattr, child, "weight"), stacks.linear)
            return {"o": Projection(whole, outputs_last=type(child).__name__ == "Conv1D")}
    return {}
