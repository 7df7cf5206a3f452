"""Find the matrices of a model: each is named, each is found once, and all other parameters are skipped with a reason.

Discovery is by parameter: what an extractor knows is read as it says, any other 2-D parameter as one matrix, and a
`weight` of more sides as from a file, so that layers of the user's own are watched without any setup.
"""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize

from esdmon.errors import InputError, UnwatchableError
from esdmon.records import Coverage
from esdmon.torch_private import parameters_of
from esdmon.weights import stacks
from esdmon.weights.kinds import MATRIX_DIMENSIONS, SCALES, why_no_weight
from esdmon.weights.layers.extract import Extractor, extract
from esdmon.weights.layers.parametrized import parametrizations_in_eval_mode, with_computed_weights
from esdmon.weights.layers.quantized import Materializer, materialize, unpacker, with_float8
from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix, mark_unreadable, reason_for
from esdmon.weights.names import named_modules, unwrap
from esdmon.weights.optional_layers import is_embedding_name, mark_optional, output_heads
from esdmon.weights.outline import Outline
from esdmon.weights.reference import ReferenceWeight, differences
from esdmon.weights.selection import Selection, coverage, problems, select
from esdmon.weights.sharded import with_shards
from esdmon.weights.shards import find_shards
from esdmon.weights.state import find_in_state
from esdmon.weights.state.layouts import parts_of

Model = nn.Module | Mapping[str, Tensor]
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Layers of torch.nn whose parameters may have two or more sides without being matrices."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The matrices to read, and what they cover of the model."""

    matrices: tuple[Matrix, ...]
    coverage: Coverage
    recount: Callable[[Mapping[str, str]], Coverage]
    """Returns the coverage without matrices that turned out to be unreadable, given their names and the reasons."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Modules that could not be searched for weights, and the error."""
    problems: Mapping[str, InputError] = field(default_factory=dict)
    """Why nothing is read, or not what was selected, where the model may be a part of one."""


def discover(
    model: Model,
    *,
    selection: Selection | None = None,
    reference: Model | None = None,
    kept: dict[str, ReferenceWeight] | None = None,
    extractor: Extractor = extract,
    materializer: Materializer = unpacker,
    views: Callable[[Sequence[Matrix]], Sequence[Matrix]] | None = None,
) -> Watched:
    """Find the matrices of a model, in its order.

    Args:
        model: a module, or names and tensors, which are read as the module would be that has them.
        selection: which matrices to read; None selects all that are read by default.
        reference: another state of the model, in either form; W − W₀ is read instead of W.
        kept: W₀ from earlier calls for the same model, which is used again; new ones are added.
        extractor: finds the matrices of a module.
        materializer: finds what unpacks a parameter that is not an ordinary tensor.
        views: returns further matrices, made of those that were found, which are read where `selection` names them.

    Raises:
        InputError: where a pattern matches no matrix, there is none, or the model is neither a module nor a mapping.
    """
    selection = selection or Selection()
    found = _find(model, extractor, materializer)
    further = () if views is None else views(found.matrices)
    everything = (*found.matrices, *further)
    reasons = select(everything, selection)
    is_empty = not found.matrices and not found.failures
    wrong = {"read": _nothing_in(model, found)} if is_empty else problems(everything, selection, reasons)
    if wrong and not selection.may_be_empty:
        raise next(iter(wrong.values()))
    chosen = tuple(matrix for matrix in found.matrices if not reasons[matrix.name])
    if reference is not None and chosen:
        chosen = differences(chosen, _find(reference, extractor, materializer).matrices, kept)
        names = {matrix.name for matrix in (*chosen, *further)}
        reasons = {name: why or ("" if name in names else "not in the reference") for name, why in reasons.items()}

    # Weak references: a parameter that the model replaces must not stay in memory because it was counted here.
    parameters = {name: weakref.ref(parameter) for name, parameter in found.parameters.items()}
    matrices, lost = found.matrices, found.lost

    def recount(unread: Mapping[str, str]) -> Coverage:
        alive = {name: parameter for name, reference in parameters.items() if (parameter := reference()) is not None}
        return coverage(alive, matrices, reasons, lost, unread)

    chosen += tuple(view for view in further if not reasons[view.name])
    return Watched(chosen, recount({}), recount, found.failures, wrong)


@dataclass(slots=True)
class _Found:
    """All matrices of a model, and all its parameters, by canonical name."""

    matrices: list[Matrix] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    """Ids of the parameters that the model names as its output."""
    failures: dict[str, str] = field(default_factory=dict)
    """Modules that could not be searched, and the error."""
    lost: dict[int, str] = field(default_factory=dict)
    """Ids of the parameters of those modules, and the error."""


def _find(model: Model, extractor: Extractor, materializer: Materializer) -> _Found:
    if isinstance(model, nn.Module):
        _check_initialized(model)
        found = _find_in_module(model, extractor)
    elif isinstance(model, Mapping):
        found = _find_in_mapping(model)
    else:
        kind = type(model).__name__
        raise UnwatchableError(f"model must be an nn.Module, a mapping of names to tensors, or a path; got {kind}")
    unpacked = [_materialize(matrix, materializer) for matrix in found.matrices]
    found.matrices = mark_optional(unpacked, found.heads)
    return found


def _why_none(found: _Found) -> str:
    """Return why no parameter of a model is a matrix."""
    empty = sum(parameter.numel() == 0 for parameter in found.parameters.values())
    if empty:
        return (
            f"esdmon reads parameters of two or more dimensions, and {empty} are empty, as ZeRO-3 leaves them: "
            "join its shards first"
        )
    kinds = [
        found.lost.get(id(parameter)) or why_no_weight(name, parameter, found.parameters)
        for name, parameter in found.parameters.items()
    ]
    others = [kind for kind in dict.fromkeys(kinds) if kind not in ("", "vectors")]
    if others:
        return f"its parameters are {', '.join(others)}"
    return "esdmon reads parameters of two or more dimensions"


def _nothing_in(model: Model, found: _Found) -> InputError:
    kind = type(unwrap(model) if isinstance(model, nn.Module) else model).__name__
    return UnwatchableError(f"{kind} has no weight matrix to read: {_why_none(found)}")


def _check_initialized(model: nn.Module) -> None:
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        kind = type(unwrap(model)).__name__
        raise UnwatchableError(f"{kind} has lazy layers without weights: run one batch through it first")


def _materialize(matrix: Matrix, materializer: Materializer) -> Matrix:
    try:
        return materialize(matrix, materializer)
    except Exception as error:  # noqa: BLE001 -- a plugin's materializer, or a weight of an unusual kind
        return mark_unreadable(matrix, reason_for(error))


def _find_in_module(model: nn.Module, extractor: Extractor) -> _Found:
    """Find matrices and parameters; a weight that several modules share has the first name, the others as aliases."""
    found = _Found()
    outline = Outline(model, find_shards(model))
    claimed: set[int] = set()
    for name, module in named_modules(outline.model):
        if isinstance(module, parametrize.ParametrizationList):
            continue
        matrices = _extract_isolated(name, module, extractor, found)
        if _only_scales(module):
            found.lost |= {id(scale): SCALES for scale in module.parameters(recurse=False) if scale.ndim > 1}
        own = [(matrix, {id(parameter) for parameter in matrix.parameters()}) for matrix in matrices]
        found.matrices += [matrix for matrix, ids in own if not claimed & ids]
        claimed.update(*(ids for matrix, ids in own if not matrix.detail))
    names = _name_parameters(outline.model, found)
    found.matrices = [with_shards(_with_aliases(matrix, names), outline, names) for matrix in found.matrices]
    found.heads = output_heads(unwrap(outline.model))
    return found


def _extract_isolated(name: str, module: nn.Module, extractor: Extractor, found: _Found) -> list[Matrix]:
    """Return the matrices of a module; where that raises, its parameters as unreadable ones."""
    try:
        return _extract(name, module, extractor)
    except Exception as error:  # noqa: BLE001 -- a user's layer or a plugin's extractor: the others are still found
        why = found.failures[name or type(module).__name__] = reason_for(error)
        found.lost |= {id(weight): why for weight in module.parameters(recurse=False)}
        return [mark_unreadable(matrix, why) for matrix in _by_parameter(name, module, MATRIX_DIMENSIONS)]


def _extract(name: str, module: nn.Module, extractor: Extractor) -> list[Matrix]:
    """Return what the extractor finds in a module, and each of its own 2-D weights besides."""
    with parametrizations_in_eval_mode(module):
        matrices = extractor(name or type(module).__name__, module)
        if matrices is None and _only_scales(module):
            return []
        if matrices is None:
            return _completed(module, [*_by_parameter(name, module, {2}), *_by_layout(name, module)])
        found = _completed(module, matrices)
        known = {id(parameter) for matrix in found for parameter in matrix.parameters()}
        others = _by_parameter(name, module, {2}) if found and _are_plain(found) else ()
        return found + [_checked(matrix) for matrix in others if known.isdisjoint(map(id, matrix.parameters()))]


def _completed(module: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices of one module, read as what acts, those that do not fit their layer marked."""
    return with_float8(module, [_checked(matrix) for matrix in with_computed_weights(module, matrices)])


def _are_plain(matrices: Sequence[Matrix]) -> bool:
    """Return whether each matrix of a module is a parameter of it, so that the other parameters are behind none."""
    return all(matrix.detail or (matrix.made_of is None and not matrix.unreadable) for matrix in matrices)


def _by_parameter(name: str, module: nn.Module, dimensions: Collection[int]) -> Iterator[Matrix]:
    for attribute, parameter in module.named_parameters(recurse=False):
        if parameter.ndim in dimensions and not why_no_weight(f"{name}.{attribute}", parameter):
            why = EMBEDDING if is_embedding_name(attribute) else ""
            read = partial(getattr, module, attribute)
            yield Matrix(_parameter_name(name, module, attribute), read, stacks.linear, on_request=why)


def _only_scales(module: nn.Module) -> bool:
    """Return whether a module multiplies each number by its own: a norm, or one with as many biases as weights."""
    own = parameters_of(module)
    weight, bias = own.get("weight"), own.get("bias")
    is_elementwise = weight is not None and bias is not None and weight.ndim > 1 and weight.shape == bias.shape
    return is_elementwise or isinstance(module, NORMS)


def _by_layout(name: str, module: nn.Module) -> Iterator[Matrix]:
    """Yield the weights of more than two sides of a module of an unknown kind, as the same would be read from a file.

    They are kernels, of which the module may say the number of groups, and stacks of matrices.
    """
    own = {f"{name}.{attribute}": parameter for attribute, parameter in module.named_parameters(recurse=False)}
    shapes = {full_name: parameter.shape for full_name, parameter in own.items()}
    for full_name, parameter in own.items():
        is_vector = parameter.numel() == max(parameter.shape, default=0)
        if parameter.ndim in MATRIX_DIMENSIONS[1:] and not is_vector and not why_no_weight(full_name, parameter):
            attribute = full_name.removeprefix(f"{name}.")
            for part in parts_of(full_name, shapes, {}, groups=_groups_of(module)):
                end = f"/{part.label}" if part.label else ""
                whole = _parameter_name(name, module, attribute)
                yield Matrix(f"{whole}{end}", partial(getattr, module, attribute), part.to_stack)


def _groups_of(module: nn.Module) -> int | None:
    """Return the groups that a convolution of the user's own says it has; None where it does not."""
    groups = vars(module).get("groups")
    return groups if isinstance(groups, int) and groups > 0 else None


def _parameter_name(name: str, module: nn.Module, attribute: str) -> str:
    """Return the name of a matrix that is one parameter; parameters of the model itself have no prefix."""
    if attribute == "weight":
        return name or type(module).__name__
    return f"{name}.{attribute}" if name else attribute


def _checked(matrix: Matrix) -> Matrix:
    """Return the matrix, marked as unreadable where the shape of its weight does not fit its layer."""
    try:
        matrix.parameters()
        matrix.size()
    except Exception as error:  # noqa: BLE001 -- reported as the reason
        return mark_unreadable(matrix, reason_for(error))
    return matrix


def _name_parameters(model: nn.Module, found: _Found) -> dict[int, list[str]]:
    """Add all parameters of a model to `found` under their first names; return all names by id of the parameter."""
    names: dict[int, list[str]] = {}
    for name, module in named_modules(model, every_name=True):
        for attribute, parameter in module.named_parameters(recurse=False):
            full_name = f"{name}.{attribute}" if name else attribute
            if id(parameter) not in names:
                found.parameters[full_name] = parameter
            names.setdefault(id(parameter), []).append(full_name)
    for matrix in found.matrices:
        for stand_in in matrix.made_of() if matrix.made_of is not None else ():
            if id(stand_in) not in names and stand_in.is_meta:  # of a packed weight, which no parameter holds
                full_name = _name_of_packed(matrix.name)
                found.parameters[full_name] = stand_in
                names[id(stand_in)] = [full_name]
    return names


def _name_of_packed(name: str) -> str:
    path = name.partition("/")[0]
    return path if path.rpartition(".")[2].startswith("weight_") else f"{path}.weight"


def _with_aliases(matrix: Matrix, names: Mapping[int, Sequence[str]]) -> Matrix:
    parameters = matrix.parameters()
    if len(parameters) != 1:
        return matrix
    first, *others = (name.removesuffix(".weight") for name in names.get(id(parameters[0]), ("",)))
    _, slash, label = matrix.name.partition("/")
    part = matrix.name.removeprefix(first) if matrix.name.startswith(first) else f"{slash}{label}"
    return replace(matrix, aliases=tuple(f"{other}{part}" for other in dict.fromkeys(others) if other != first))


def _find_in_mapping(weights: Mapping[str, Tensor]) -> _Found:
    inside = find_in_state(weights)
    matrices = [_checked(matrix) for matrix in inside.matrices]
    return _Found(matrices, inside.parameters, lost=inside.left_out)
