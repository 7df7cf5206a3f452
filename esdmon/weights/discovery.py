"""From a model to its matrices: each named, each found once, all other parameters skipped with a reason.

Discovery is by parameter: what the extractors know is read as they say, and any other 2-D parameter as one matrix, so
that a layer of the user's own is watched without a word.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esdmon.errors import InputError, as_list, nearest
from esdmon.records import Coverage, Skipped
from esdmon.weights.extract import Extractor, convolution_stack, extract, linear_stack
from esdmon.weights.matrix import Matrix
from esdmon.weights.names import named_modules, unwrap


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
        model: a module, or names and tensors, where 2-D tensors are read as linear layers and those of 3 to 5
            dimensions as convolutions.
        layers: fnmatch patterns on the matrices' names; None for all that are read by default.
        extractor: what knows the kinds of modules.

    Raises:
        InputError: where a pattern matches no matrix, there is none, or the model is neither module nor mapping.
    """
    if isinstance(model, nn.Module):
        model = unwrap(model)
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
            raise InputError(f"{type(model).__name__} has lazy layers without weights: run one batch through it first")
        found = list(_in_module(model, extractor))
        parameters = _canonical_parameters(model)
    elif isinstance(model, Mapping):
        found = list(_in_mapping(model))
        parameters = dict(model)
    else:
        msg = f"a model is an nn.Module or a mapping of names to tensors, got {type(model).__name__}"
        raise InputError(msg)
    if not found:
        msg = f"{type(model).__name__} has no weight matrix to read: esdmon reads parameters of two or more dimensions"
        raise InputError(msg)
    chosen = _select(found, layers)
    return Watched(chosen, _coverage(parameters, found, chosen))


def _in_module(model: nn.Module, extractor: Extractor) -> Iterator[Matrix]:
    """All matrices; a weight that several modules share once, under the first name."""
    seen: set[int] = set()
    for name, module in named_modules(model):
        own = [] if isinstance(module, parametrize.ParametrizationList) else list(_of_module(name, module, extractor))
        new = [matrix for matrix in own if not seen & {id(parameter) for parameter in matrix.parameters()}]
        seen |= {id(parameter) for matrix in own for parameter in matrix.parameters()}
        yield from new


def _of_module(name: str, module: nn.Module, extractor: Extractor) -> Iterator[Matrix]:
    """What the extractor finds in a module; failing that, each of its own 2-D parameters."""
    name = name or type(module).__name__
    with _at_rest(module):
        matrices = extractor(name, module)
        if matrices is None:
            matrices = [
                Matrix(_name(name, attribute), partial(getattr, module, attribute), linear_stack)
                for attribute, parameter in module.named_parameters(recurse=False)
                if parameter.ndim == 2
            ]
        if not parametrize.is_parametrized(module):
            yield from matrices
            return
        for matrix in matrices:
            yield replace(matrix, read=partial(_read_at_rest, module, matrix.read), made_of=partial(_originals, module))


def _name(module: str, attribute: str) -> str:
    return module if attribute == "weight" else f"{module}.{attribute}"


def _read_at_rest(module: nn.Module, read: Callable[[], Tensor]) -> Tensor:
    with _at_rest(module), torch.no_grad():
        return read()


def _originals(module: nn.Module) -> tuple[Tensor, ...]:
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)  # noqa: S101 -- for the type checker
    return tuple(parametrizations.parameters())


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """Parametrisations in evaluation mode: in training mode spectral_norm, for one, moves its state at each look."""
    parts = list(module.parametrizations.modules()) if parametrize.is_parametrized(module) else []  # type: ignore[union-attr]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _canonical_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, under its canonical name."""
    seen: set[int] = set()
    parameters: dict[str, Tensor] = {}
    for name, module in named_modules(model):
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameters[f"{name}.{attribute}" if name else attribute] = parameter
    return parameters


def _in_mapping(weights: Mapping[str, Tensor]) -> Iterator[Matrix]:
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            msg = f"{name!r} is a {type(tensor).__name__}: a model is an nn.Module or a mapping of names to tensors"
            raise InputError(msg)
        if 2 <= tensor.ndim <= 5:
            to_stack = linear_stack if tensor.ndim == 2 else convolution_stack
            yield Matrix(name.removesuffix(".weight"), partial(weights.__getitem__, name), to_stack)


def _select(found: Sequence[Matrix], layers: Sequence[str] | None) -> tuple[Matrix, ...]:
    if layers is None:
        return tuple(matrix for matrix in found if not matrix.on_request)
    patterns = [str(pattern) for pattern in as_list("layers", layers, "patterns of names")]
    if not patterns:
        raise InputError("layers= is empty: leave it out to read all layers")
    names = [matrix.name for matrix in found]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern, names) or f" The layers are: {', '.join(names[:8])}{' …' if names[8:] else ''}."
            msg = f"layers={pattern!r} matches no layer.{hint}"
            raise InputError(msg)
    return tuple(m for m in found if any(fnmatchcase(m.name, pattern) for pattern in patterns))


def _coverage(parameters: Mapping[str, Tensor], found: Sequence[Matrix], chosen: Sequence[Matrix]) -> Coverage:
    watched = {id(parameter) for matrix in chosen for parameter in matrix.parameters()}
    left_out = {
        id(parameter): matrix.on_request or "left out by layers="
        for matrix in found
        for parameter in matrix.parameters()
    }
    skipped = []
    for name, parameter in parameters.items():
        if id(parameter) not in watched:
            other = "vectors" if parameter.ndim < 2 else f"{parameter.ndim}-D weights of a kind that is not read yet"
            skipped.append(Skipped(name, parameter.numel(), left_out.get(id(parameter), other)))
    total = sum(parameter.numel() for parameter in parameters.values())
    return Coverage(total - sum(skip.n_parameters for skip in skipped), total, tuple(skipped))
