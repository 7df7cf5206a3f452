"""From a model to its matrices: each named, each found once, all other parameters skipped with a reason.

Discovery is by parameter: what the extractors know is read as they say, and any other 2-D parameter as one matrix, so
that a layer of the user's own is watched without a word.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esdmon.errors import InputError
from esdmon.records import Coverage
from esdmon.weights import stacks
from esdmon.weights.layers.extract import Extractor, extract
from esdmon.weights.layers.lora import low_rank
from esdmon.weights.layers.parametrized import as_computed, at_rest
from esdmon.weights.layers.quantized import Materializer, materialised, unpacker
from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix, refused, why_not
from esdmon.weights.names import named_modules, unwrap
from esdmon.weights.optional_layers import is_embedding_by_name, output_heads, with_roles
from esdmon.weights.reference import Before, differences
from esdmon.weights.selection import Selection, coverage, select
from esdmon.weights.shards import Outline, find_shards, parameters_of, shard_of

Model = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Watched:
    """The matrices to read, and what they cover of the model."""

    matrices: tuple[Matrix, ...]
    coverage: Coverage
    failures: Mapping[str, str] = field(default_factory=dict)
    """Modules whose weights could not be found, and what went wrong."""


def discover(
    model: Model,
    *,
    selection: Selection | None = None,
    reference: Model | None = None,
    kept: dict[str, Before] | None = None,
    extractor: Extractor = extract,
    materializer: Materializer = unpacker,
) -> Watched:
    """The matrices of a model, in its order.

    Args:
        model: a module, or names and tensors, where 2-D tensors are read as linear layers and those of 3 to 5
            dimensions as convolutions, or as experts where their names say so.
        selection: what to read of it.
        reference: another state of the model, in either form: W − W₀ is read instead of W.
        kept: W₀ as it was found at an earlier call, if this is not the first for the model.
        extractor: what knows the kinds of modules.
        materializer: what knows the kinds of parameters that are no ordinary tensors.

    Raises:
        InputError: where a pattern matches no matrix, there is none, or the model is neither module nor mapping.
    """
    found = _find(model, extractor, materializer)
    reasons = select(found.matrices, selection or Selection())
    chosen = tuple(matrix for matrix in found.matrices if not reasons[matrix.name])
    if reference is not None:
        chosen = differences(chosen, _find(reference, extractor, materializer).matrices, kept)
        names = {matrix.name for matrix in chosen}
        reasons = {name: why or ("" if name in names else "not in the reference") for name, why in reasons.items()}
    return Watched(chosen, coverage(found.parameters, found.matrices, reasons, found.lost), found.failures)


@dataclass(slots=True)
class _Found:
    """All matrices of a model, and all its parameters, by canonical name."""

    matrices: list[Matrix] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    """Parameters of modules that failed, by id, and why."""


def _find(model: Model, extractor: Extractor, materializer: Materializer) -> _Found:
    if isinstance(model, nn.Module):
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
            raise InputError(
                f"{type(unwrap(model)).__name__} has lazy layers without weights: run one batch through it first"
            )
        found, heads = _in_module(model, extractor)
    elif isinstance(model, Mapping):
        found, heads = _in_mapping(model), set()
    else:
        msg = f"a model is an nn.Module, a mapping of names to tensors or a path, got {type(model).__name__}"
        raise InputError(msg)
    if not found.matrices and not found.failures:
        kind = unwrap(model) if isinstance(model, nn.Module) else model
        msg = f"{type(kind).__name__} has no weight matrix to read: esdmon reads parameters of two or more dimensions"
        raise InputError(msg)
    found.matrices = with_roles([_unpacked(matrix, materializer) for matrix in found.matrices], heads)
    return found


def _unpacked(matrix: Matrix, materializer: Materializer) -> Matrix:
    try:
        return materialised(matrix, materializer)
    except Exception as error:  # noqa: BLE001 -- a stranger's materializer, or a weight of a strange kind
        return refused(matrix, why_not(error))


def _in_module(model: nn.Module, extractor: Extractor) -> tuple[_Found, set[int]]:
    """A weight that several modules share is found once, under the first name, the others being its aliases."""
    found = _Found()
    shards = find_shards(model)
    outline = Outline(model, shards)
    claimed: set[int] = set()
    for name, module in named_modules(outline.model):
        if isinstance(module, parametrize.ParametrizationList):
            continue
        try:
            matrices = _of_module(name, module, extractor)
        except Exception as error:  # noqa: BLE001 -- a stranger's layer or extractor: the others are found all the same
            why = found.failures[name or type(module).__name__] = why_not(error)
            matrices = [refused(matrix, why) for matrix in _by_parameter(name, module, {2, 3, 4, 5})]
            found.lost |= {id(outline.held(weight)): why for weight in module.parameters(recurse=False)}
        own = [(matrix, {id(parameter) for parameter in matrix.parameters()}) for matrix in matrices]
        found.matrices += [_without_shards(matrix, outline) for matrix, ids in own if not claimed & ids]
        claimed |= {each for _, ids in own for each in ids}
    names: dict[int, list[str]] = {}
    for name, module in named_modules(model, every_name=True):
        for attribute, parameter in parameters_of(module, shards).items():
            full = f"{name}.{attribute}" if name else attribute
            if id(parameter) not in names:
                found.parameters[full] = parameter
            names.setdefault(id(parameter), []).append(full)
    found.matrices = [_with_aliases(matrix, names) for matrix in found.matrices]
    return found, output_heads(unwrap(outline.model))


def _of_module(name: str, module: nn.Module, extractor: Extractor) -> list[Matrix]:
    """What the extractor finds in a module; failing that, each of its own 2-D parameters but biases."""
    with at_rest(module):
        matrices = extractor(name or type(module).__name__, module)
        if matrices is None:
            matrices = list(_by_parameter(name, module, {2}))
        return [_checked(matrix) for matrix in as_computed(module, matrices)]


def _by_parameter(name: str, module: nn.Module, dimensions: Collection[int]) -> Iterator[Matrix]:
    for attribute, parameter in module.named_parameters(recurse=False):
        if parameter.ndim in dimensions and "bias" not in attribute.split("_"):
            why = EMBEDDING if is_embedding_by_name(attribute) else ""
            read = partial(getattr, module, attribute)
            yield Matrix(_own_name(name, module, attribute), read, stacks.linear, on_request=why)


def _own_name(name: str, module: nn.Module, attribute: str) -> str:
    """Of a parameter that belongs to a module itself; the model has no name before it."""
    if attribute == "weight":
        return name or type(module).__name__
    return f"{name}.{attribute}" if name else attribute


def _checked(matrix: Matrix) -> Matrix:
    """The matrix, where its weight has a shape that its layer can have."""
    try:
        matrix.parameters()
        matrix.stack_shape()
    except Exception as error:  # noqa: BLE001 -- told as the reason
        return refused(matrix, why_not(error))
    return matrix


def _without_shards(matrix: Matrix, outline: Outline) -> Matrix:
    """The matrix; one whose weight is spread over ranks with what the optimizer holds of it, and not to be read."""
    shards = outline.shards_in(matrix.parameters())
    if not shards:
        return matrix
    shape = (0, 0, 0) if matrix.unreadable else matrix.stack_shape()
    return refused(matrix, shards[0].reason, parameters=tuple(shard.parameter for shard in shards), shape=shape)


def _with_aliases(matrix: Matrix, names: Mapping[int, Sequence[str]]) -> Matrix:
    parameters = matrix.parameters()
    if len(parameters) != 1:
        return matrix
    others = [name.removesuffix(".weight") for name in names.get(id(parameters[0]), ())[1:]]
    part = matrix.name.partition("/")[2]
    return replace(matrix, aliases=tuple(f"{other}/{part}" if part else other for other in others))


def _in_mapping(weights: Mapping[str, Tensor]) -> _Found:
    """Of a checkpoint the outlines alone are looked at: its tensors are read when their turn comes."""
    outlines: Mapping[str, Tensor] = getattr(weights, "outlines", weights)
    parameters: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], list[str]] = {}
    for name, outline in outlines.items():
        if not isinstance(outline, Tensor):
            msg = f"{name!r} is a {type(outline).__name__}: a model is an nn.Module or a mapping of names to tensors"
            raise InputError(msg)
        same = names.setdefault(_place(outline), [])
        if not same:
            parameters[name] = outline
        same.append(name)
    found = [
        replace(matrix, aliases=tuple(other.removesuffix(".weight") for other in names[_place(outline)][1:]))
        for name, outline in parameters.items()
        for matrix in _of_entry(name, weights, outlines)
    ]
    return _Found(found, parameters)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for two names of one weight, and for no others."""
    if tensor.device.type == "meta" or tensor.is_sparse or tensor.numel() == 0 or not hasattr(tensor, "data_ptr"):
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _of_entry(name: str, weights: Mapping[str, Tensor], outlines: Mapping[str, Tensor]) -> Iterator[Matrix]:
    outline = outlines[name]
    if not 2 <= outline.ndim <= 5:
        return
    a, b = name, name.replace(".lora_A.", ".lora_B.")
    if ".lora_B." in name and name.replace(".lora_B.", ".lora_A.") in outlines:
        return
    if a != b and b in outlines and outline.ndim == outlines[b].ndim == 2:
        yield _delta_in_mapping(a, b, weights, outlines)
        return
    experts = outline.ndim == 3 and "expert" in name
    matrix = Matrix(
        name.removesuffix(".weight"),
        partial(weights.__getitem__, name),
        stacks.linear if outline.ndim == 2 else stacks.as_it_is if experts else stacks.convolution,
        on_request=EMBEDDING if is_embedding_by_name(name.removesuffix(".weight")) else "",
    )
    if (shard := shard_of(outline)) is not None:
        yield refused(matrix, shard.reason, parameters=(outline,), shape=matrix.stack_shape_of(outline))
        return
    lazy = outlines is not weights
    yield replace(matrix, made_of=lambda: (outline,), outline=lambda: outline) if lazy else matrix


def _delta_in_mapping(a: str, b: str, weights: Mapping[str, Tensor], outlines: Mapping[str, Tensor]) -> Matrix:
    """An adapter's ΔW = B·A; its scaling is not among the weights, and taken as 1."""
    first, second = outlines[a], outlines[b]
    n, r = max(first.shape[1], second.shape[0]), min(*first.shape, *second.shape)
    return Matrix(
        a.removesuffix(".weight").replace(".lora_A", "/lora"),
        lambda: low_rank(weights[a], weights[b]),
        stacks.as_it_is,
        made_of=lambda: (first, second),
        outline=partial(torch.empty, 1, n, r, device="meta"),
        view="lora-delta",
    )
