"""Find the matrices of a model, select the matrices to read, and count their parameters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from esdmon.errors import InputError, UnwatchableError
from esdmon.records import Coverage
from esdmon.records.text import named
from esdmon.weights.checkpoint.mapping import Checkpoint, Model
from esdmon.weights.found import Found
from esdmon.weights.layers.extract import Extractor, extract
from esdmon.weights.layers.find import find_in_module
from esdmon.weights.layers.quantized import Materializer, materialize, unpacker
from esdmon.weights.matrix import Matrix, mark_unreadable, reason_for
from esdmon.weights.names import unwrap
from esdmon.weights.non_weights import why_not_a_weight
from esdmon.weights.optional_layers import mark_optional
from esdmon.weights.reference import ReferenceWeight, differences
from esdmon.weights.selection import Counted, Selection, coverage, problems, select
from esdmon.weights.state import find_in_state


@dataclass(frozen=True, slots=True)
class Watched:
    """The matrices to read, and the part of the model that they cover."""

    matrices: tuple[Matrix, ...]
    coverage: Coverage
    recount: Callable[[Mapping[str, str]], Coverage]
    """Returns the coverage without matrices that turned out to be unreadable, given their names and the reasons."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Modules that could not be searched for weights, and the error."""
    problems: Mapping[str, InputError] = field(default_factory=dict)
    """Reasons why nothing, or not the selection, is read, if the model may be a part of a larger one."""


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
        views: returns further matrices, derived from the found ones, which are read if `selection` names them.

    Raises:
        InputError: if a pattern matches no matrix, there is no matrix, or the model is neither a module nor a mapping.
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

    # Records, since a parameter that the model replaces must not stay in memory because it was counted here. Weak
    # references would make `torch.utils.swap_tensors` fail, by which torch may convert and load modules.
    parameters = {name: Counted.of(name, parameter) for name, parameter in found.parameters.items()}
    matrices, left_out = found.matrices, found.left_out

    def recount(unread: Mapping[str, str]) -> Coverage:
        return coverage(parameters, matrices, reasons, left_out=left_out, unread=unread)

    chosen += tuple(view for view in further if not reasons[view.name])
    return Watched(chosen, recount({}), recount, found.failures, wrong)


def _find(model: Model, extractor: Extractor, materializer: Materializer) -> Found:
    if isinstance(model, nn.Module):
        _check_initialized(model)
        found = find_in_module(model, extractor)
    elif isinstance(model, Mapping):
        found = find_in_state(model)
    else:
        kind = type(model).__name__
        raise UnwatchableError(
            f"model must be an nn.Module, a mapping of names to tensors, or a path; got {kind}{_modules_in(model)}"
        )
    unpacked = [_materialize(matrix, materializer) for matrix in found.matrices]
    found.matrices = mark_optional(unpacked, found.heads)
    return found


def _modules_in(owner: object) -> str:
    """Return which attributes of a forecaster, a Trainer or the like are modules, as the end of a message."""
    if isinstance(owner, Iterator):
        return ". Give the module itself, not its parameters()"
    if isinstance(owner, list | tuple):
        if not any(isinstance(each, nn.Module) for each in owner):
            return ""
        return ". Give the module in it, [0]" if len(owner) == 1 else ". Join its modules in an nn.ModuleDict"
    places = []
    for name, value in vars(owner).items() if hasattr(owner, "__dict__") else ():
        items = {name: value}
        if isinstance(value, list | tuple):
            items = {f"{name}[{k}]": each for k, each in enumerate(value)}
        places += [f".{place}" for place, each in items.items() if isinstance(each, nn.Module) and name[0] != "_"]
    return f". Pass one of the modules in it: {named(places)}" if places else ""


def _why_none(found: Found) -> str:
    """Return why no parameter of a model is a matrix."""
    empty = sum(parameter.numel() == 0 for parameter in found.parameters.values())
    if empty:
        return (
            f"esdmon reads parameters of two or more dimensions, and {empty} are empty, as ZeRO-3 leaves them: "
            "join its shards first"
        )
    kinds = [
        found.left_out.get(id(parameter)) or why_not_a_weight(name, parameter, found.parameters)
        for name, parameter in found.parameters.items()
    ]
    others = [kind for kind in dict.fromkeys(kinds) if kind not in ("", "vectors")]
    if others:
        return f"its parameters are {', '.join(others)}"
    return "esdmon reads parameters of two or more dimensions"


def _nothing_in(model: Model, found: Found) -> InputError:
    kind = type(unwrap(model) if isinstance(model, nn.Module) else model).__name__
    if isinstance(model, Checkpoint) and model.files:
        kind = named(map(str, model.files), most=1)
    config = getattr(model, "config", None) if isinstance(model, Mapping) else None
    adapter = config.get("peft_type") if isinstance(config, Mapping) else None
    why = _why_none(found)
    if adapter and adapter not in ("LORA", "ADALORA"):
        why = (
            f"it is an adapter of the kind {adapter} of peft, and esdmon reads those of the kinds LORA and ADALORA. "
            "Merge it into its model, and read that"
        )
    return UnwatchableError(f"{kind} has no weight matrix to read: {why}")


def _check_initialized(model: nn.Module) -> None:
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        kind = type(unwrap(model)).__name__
        raise UnwatchableError(f"{kind} has lazy layers without weights: run one batch through it first")


def _materialize(matrix: Matrix, materializer: Materializer) -> Matrix:
    try:
        return materialize(matrix, materializer)
    except Exception as error:  # noqa: BLE001 -- a plugin's materializer, or a weight of an unusual kind
        return mark_unreadable(matrix, reason_for(error))
