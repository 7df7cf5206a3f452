"""From a model to its matrices: each named, each found once, all other parameters skipped with a reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize

from esdmon.errors import InputError, as_list, nearest
from esdmon.records import Coverage, Skipped
from esdmon.weights.extract import Extractor, convolution_stack, extract, linear_stack
from esdmon.weights.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Watched:
    """The matrices to read, and what they cover of the model."""

    matrices: tuple[Matrix, ...]
    coverage: Coverage


def discover(
    model: nn.Module | Mapping[str, Tensor],
    *,
    layers: Sequence[str] | None = None,
    extractor: Extractor = extract,
) -> Watched:
    """The matrices of a model, in its order.

    Args:
        model: a module (wrappers of `torch.compile`, DDP and DataParallel are looked through), or names and tensors,
            where 2-D tensors are read as linear layers and 4-D ones as convolutions.
        layers: fnmatch patterns on the matrices' names; None for all.
        extractor: what knows the kinds of modules.

    Raises:
        InputError: where a pattern matches no matrix, there is none, or the model is neither module nor mapping.
    """
    if isinstance(model, nn.Module):
        model = unwrap(model)
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
            raise InputError(f"{type(model).__name__} has lazy layers without weights: run one batch through it first")
        found = list(_in_module(model, extractor))
        parameters: Mapping[str, Tensor] = dict(model.named_parameters())
        unread = _parametrised(model)
    elif isinstance(model, Mapping):
        found = list(_in_mapping(model))
        parameters, unread = model, set()
    else:
        msg = f"a model is an nn.Module or a mapping of names to tensors, got {type(model).__name__}"
        raise InputError(msg)
    if not found:
        msg = f"{type(model).__name__} has no weight matrix to read: esdmon reads Linear and Conv2d layers"
        raise InputError(msg)
    chosen = _select(found, layers)
    return Watched(chosen, _coverage(parameters, found, chosen, unread))


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers that rename its parameters, known by their type."""
    while True:
        inner = None
        # What torch.compile returns. By name: importing its class would load dynamo.
        if type(model).__name__ == "OptimizedModule":
            inner = getattr(model, "_orig_mod", None)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _in_module(model: nn.Module, extractor: Extractor) -> Iterator[Matrix]:
    """All matrices; a weight that several modules share once, under the first name."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            continue
        for matrix in extractor(name or type(module).__name__, module) or ():
            if id(matrix.read()) not in seen:
                seen.add(id(matrix.read()))
                yield matrix


def _in_mapping(weights: Mapping[str, Tensor]) -> Iterator[Matrix]:
    stacks = {2: linear_stack, 4: convolution_stack}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            msg = f"{name!r} is a {type(tensor).__name__}: a model is an nn.Module or a mapping of names to tensors"
            raise InputError(msg)
        if tensor.ndim in stacks:
            yield Matrix(name.removesuffix(".weight"), partial(weights.__getitem__, name), stacks[tensor.ndim])


def _parametrised(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for parameter in module.parameters()
    }


def _select(found: Sequence[Matrix], layers: Sequence[str] | None) -> tuple[Matrix, ...]:
    if layers is None:
        return tuple(found)
    patterns = as_list("layers", layers, "patterns of names")
    if not patterns:
        raise InputError("layers= is empty: leave it out to read all layers")
    names = [matrix.name for matrix in found]
    for pattern in map(str, patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern, names) or f" The layers are: {', '.join(names[:8])}{' …' if names[8:] else ''}."
            msg = f"layers={pattern!r} matches no layer.{hint}"
            raise InputError(msg)
    return tuple(m for m in found if any(fnmatchcase(m.name, str(pattern)) for pattern in patterns))


def _coverage(
    parameters: Mapping[str, Tensor], found: Sequence[Matrix], chosen: Sequence[Matrix], unread: set[int]
) -> Coverage:
    ids, all_ids = ({id(matrix.read()) for matrix in matrices} for matrices in (chosen, found))
    skipped = []
    for name, parameter in parameters.items():
        if id(parameter) in ids:
            continue
        if id(parameter) in all_ids:
            reason = "left out by layers="
        elif parameter.ndim < 2:
            reason = "vectors"
        elif id(parameter) in unread:
            reason = "parametrised, which is not read yet"
        else:
            reason = f"{parameter.ndim}-D weights of a kind that is not read yet"
        skipped.append(Skipped(name, parameter.numel(), reason))
    total = sum(parameter.numel() for parameter in parameters.values())
    return Coverage(total - sum(skip.n_parameters for skip in skipped), total, tuple(skipped))
