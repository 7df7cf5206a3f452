"""Find the matrices of a module: each has one name and is found once, and all other parameters have a reason.

A layer with an extractor is read by the extractor. In other layers each 2-D parameter is read as one matrix, and a
`weight` with more dimensions as in a file. So a user's own layers are watched without any setup.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from torch import nn
from torch.nn.utils import parametrize

from esdmon.weights import stacks
from esdmon.weights.found import Found
from esdmon.weights.layers.extract import Extractor
from esdmon.weights.layers.parametrized import parametrizations_in_eval_mode, with_computed_weights
from esdmon.weights.layers.quantized import with_float8
from esdmon.weights.layers.torch_nn import EMBEDDING
from esdmon.weights.matrix import Matrix, checked, mark_unreadable, reason_for
from esdmon.weights.names import named_modules, unwrap
from esdmon.weights.non_weights import MATRIX_DIMENSIONS, SCALES, why_not_a_weight
from esdmon.weights.optional_layers import is_embedding_name, output_heads
from esdmon.weights.outline import Outline
from esdmon.weights.sharded_matrices import unsharded_beside, with_shards
from esdmon.weights.shards import find_shards, with_unsharded
from esdmon.weights.state.layouts import Part, parts_of
from esdmon.weights.torch_private import parameters_of

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Layers of torch.nn whose parameters may have two or more sides without being matrices."""


def find_in_module(model: nn.Module, extractor: Extractor) -> Found:
    """Find the matrices and parameters of a model; a weight that several modules share has the first of its names.

    Args:
        model: the model, in wrappers or not, which may be sharded over ranks.
        extractor: finds the matrices of one module.
    """
    shards = find_shards(model)
    outline = Outline(model, shards)
    found = _find_in(outline, extractor)
    beside = unsharded_beside(found.matrices, outline)
    if beside:
        outline = Outline(model, with_unsharded(model, shards, beside))
        found = _find_in(outline, extractor)
    names = _name_parameters(outline.model, found)
    found.matrices = [with_shards(_with_aliases(matrix, names), outline, names) for matrix in found.matrices]
    found.heads = output_heads(unwrap(outline.model))
    return found


def _find_in(outline: Outline, extractor: Extractor) -> Found:
    """Find the matrices of an outline, without the names of their parameters."""
    found = Found()
    claimed: set[int] = set()
    for name, module in named_modules(outline.model):
        if isinstance(module, parametrize.ParametrizationList):
            continue
        matrices = [each for each in _extract_isolated(name, module, extractor, found) if not _is_place(each)]
        own = [(matrix, {id(parameter) for parameter in matrix.parameters()}) for matrix in matrices]
        found.matrices += [matrix for matrix, ids in own if not claimed & ids]
        claimed.update(*(ids for matrix, ids in own if not matrix.detail))
    return found


def _is_place(matrix: Matrix) -> bool:
    """Return whether a weight is a placeholder for one that is passed with each call, as by `functional_call`.

    Libraries that use `torch.func.functional_call` keep a copy of the module with plain tensors on the meta device
    instead of parameters.
    """
    with suppress(Exception):  # reported for the matrix
        weight = None if matrix.made_of else matrix.read()
        return weight is not None and weight.is_meta and not isinstance(weight, nn.Parameter)
    return False


def _extract_isolated(name: str, module: nn.Module, extractor: Extractor, found: Found) -> list[Matrix]:
    """Return the matrices of a module; if that raises, return its parameters as unreadable matrices."""
    try:
        if _only_scales(module):
            found.left_out |= {id(scale): SCALES for scale in module.parameters(recurse=False) if scale.ndim > 1}
        return _extract(name, module, extractor)
    except Exception as error:  # noqa: BLE001 -- a user's layer or a plugin's extractor: the others are still found
        why = found.failures[name or type(module).__name__] = reason_for(error)
        found.left_out |= {id(weight): why for weight in module.parameters(recurse=False)}
        return [mark_unreadable(matrix, why) for matrix in _by_parameter(name, module, MATRIX_DIMENSIONS)]


def _extract(name: str, module: nn.Module, extractor: Extractor) -> list[Matrix]:
    """Return the matrices that the extractor finds in a module, and its other 2-D weights."""
    with parametrizations_in_eval_mode(module):
        matrices = extractor(name or type(module).__name__, module)
        if matrices is None:
            if _only_scales(module):
                return []
            return _completed(module, list(_by_layout(name, module)))
        found = _completed(module, matrices)
        known = {id(parameter) for matrix in found for parameter in matrix.parameters()}
        others = _by_parameter(name, module, {2}) if found and _are_plain(found) else ()
        return found + [checked(matrix) for matrix in others if known.isdisjoint(map(id, matrix.parameters()))]


def _completed(module: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices of one module, as they act in `forward`; matrices that do not fit their layer are marked."""
    return with_float8(module, [checked(matrix) for matrix in with_computed_weights(module, matrices)])


def _are_plain(matrices: Sequence[Matrix]) -> bool:
    """Return whether each matrix of a module is one of its parameters, so that no matrix depends on the other ones."""
    return all(matrix.detail or (matrix.made_of is None and not matrix.unreadable) for matrix in matrices)


def _by_parameter(name: str, module: nn.Module, dimensions: Collection[int]) -> Iterator[Matrix]:
    for attribute, parameter in module.named_parameters(recurse=False):
        if parameter.ndim in dimensions and not why_not_a_weight(f"{name}.{attribute}", parameter):
            why = EMBEDDING if is_embedding_name(attribute) else ""
            read = partial(getattr, module, attribute)
            yield Matrix(_parameter_name(name, module, attribute), read, stacks.linear, on_request=why)


def _only_scales(module: nn.Module) -> bool:
    """Return whether a module scales each number separately: a norm, or a module with as many biases as weights."""
    if isinstance(module, _NORMS):
        return True
    own = parameters_of(module)
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or bias is None or weight.is_nested or bias.is_nested:
        return False
    return weight.ndim > 1 and weight.shape == bias.shape


def _by_layout(name: str, module: nn.Module) -> Iterator[Matrix]:
    """Yield the weights of a module of an unknown kind, interpreted as in a file.

    Those of more than two sides are kernels, of which the module may say the number of groups, and stacks of matrices;
    of two sides a parameter holds several matrices if it has the name that torch gives to such, as `in_proj_weight`.
    """
    own = dict(module.named_parameters(recurse=False))
    prefix = f"{name}." if name else ""
    inside = module.named_parameters() if own else ()
    shapes = {f"{prefix}{path}": each.shape for path, each in inside if not each.is_nested}
    for attribute, parameter in own.items():
        full_name = f"{prefix}{attribute}"
        if full_name not in shapes or why_not_a_weight(full_name, parameter):
            continue
        whole, read = _parameter_name(name, module, attribute), partial(getattr, module, attribute)
        if parameter.ndim == 2:
            # A table of a library's own, such as `word_embeddings` of Megatron: by its name, as from a file.
            is_table = attribute == "weight" and "bias" not in own and is_embedding_name(name)
            why = EMBEDDING if is_table or is_embedding_name(attribute) else ""
            parts = [Part("", stacks.linear)] if attribute == "weight" else parts_of(full_name, shapes, {})
        else:
            why = ""
            is_vector = parameter.numel() == max(parameter.shape, default=0)
            parts = [] if is_vector else parts_of(full_name, shapes, {}, groups=_declared_groups(module))
        for part in parts:
            yield Matrix(f"{whole}/{part.label}" if part.label else whole, read, part.to_stack, on_request=why)


def _declared_groups(module: nn.Module) -> int | None:
    """Return the groups that a convolution of the user's own says it has; None if it does not."""
    groups = vars(module).get("groups")
    return groups if isinstance(groups, int) and groups > 0 else None


def _parameter_name(name: str, module: nn.Module, attribute: str) -> str:
    """Return the name of a matrix that is one parameter; parameters of the model itself have no prefix."""
    if attribute == "weight":
        return name or type(module).__name__
    full_name = f"{name}.{attribute}" if name else attribute
    return full_name.removesuffix(".weight")  # parameters of a TensorDict have paths for names


def _name_parameters(model: nn.Module, found: Found) -> dict[int, list[str]]:
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
