"""Which of the matrices that a model has are read, and what that covers of its parameters."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from esdmon.errors import InputError, as_list, nearest
from esdmon.records import Coverage, Skipped
from esdmon.weights.device.readable import MIN_EIGENVALUES, check_kind
from esdmon.weights.matrix import Matrix, UnreadableError


@dataclass(frozen=True, slots=True)
class Selection:
    """What to read of a model."""

    layers: Sequence[str] | None = None
    """fnmatch patterns on the names of matrices; None for all that are read by default."""
    exclude: Sequence[str] = ()
    """Patterns of those to leave out."""
    min_eigenvalues: int = MIN_EIGENVALUES
    """Matrices with fewer eigenvalues, over all their slices, are left out."""
    max_eigenvalues: int | None = None
    """Matrices with more are left out; None for no limit."""


def select(found: Sequence[Matrix], selection: Selection) -> dict[str, str]:
    """Name -> why it is left out, empty for those that are chosen.

    Raises:
        InputError: where a pattern matches no matrix, a size is no number, or nothing is left.
    """
    layers = None if selection.layers is None else _patterns("layers", selection.layers, found)
    exclude = _patterns("exclude", selection.exclude, found)
    low, high = _sizes(selection)
    if layers == []:
        raise InputError("layers= is empty: leave it out to read all layers")
    reasons = {matrix.name: _why_not(matrix, layers, exclude) for matrix in found}
    for matrix in found:
        if matrix.unreadable and not math.prod(matrix.stack_shape()):
            continue  # of unknown size
        count = eigenvalues_of(matrix)
        # The floor below which nothing is read at all is told with the reading: there the layer has a status.
        if not reasons[matrix.name] and (count > high or (low > MIN_EIGENVALUES and count < low)):
            reasons[matrix.name] = f"left out by {'max' if count > high else 'min'}_eigenvalues="
    if found and all(reasons.values()):
        why = {reasons[matrix.name]: None for matrix in found if not matrix.detail}
        msg = f"no matrix is left to read: {'; '.join(why)}"
        raise InputError(msg)
    return reasons


def eigenvalues_of(matrix: Matrix) -> int:
    """How many eigenvalues a matrix has, over all its slices."""
    slices, rows, columns = matrix.stack_shape()
    return slices * min(rows, columns)


def coverage(
    parameters: Mapping[str, Tensor],
    found: Sequence[Matrix],
    reasons: Mapping[str, str],
    lost: Mapping[int, str] | None = None,
) -> Coverage:
    """What the chosen matrices make of the model's parameters, by element; `lost` has reasons by id of parameter."""
    watched: dict[int, int] = {}
    why: dict[int, str] = dict(lost or {})
    for matrix in found:
        reason = reasons[matrix.name] or _unreadable(matrix)
        for parameter in matrix.parameters():
            if reason and not matrix.detail:
                why.setdefault(id(parameter), reason)
            elif not reason:
                read = parameter.numel() if matrix.made_of else math.prod(matrix.stack_shape())
                watched[id(parameter)] = watched.get(id(parameter), 0) + read
    skipped = []
    for name, parameter in parameters.items():
        left = parameter.numel() - watched.get(id(parameter), 0)
        if left > 0:
            skipped.append(Skipped(name, left, why.get(id(parameter)) or _unclaimed(name, parameter)))
    total = sum(parameter.numel() for parameter in parameters.values())
    return Coverage(total - sum(skip.n_parameters for skip in skipped), total, tuple(skipped))


def _why_not(matrix: Matrix, layers: Sequence[str] | None, exclude: Sequence[str]) -> str:
    if any(matrix.is_named_by(pattern) for pattern in exclude):
        return "left out by exclude="
    if layers is None:
        return matrix.on_request
    return "" if any(matrix.is_named_by(pattern) for pattern in layers) else matrix.on_request or "left out by layers="


def _patterns(argument: str, given: Sequence[str], found: Sequence[Matrix]) -> list[str]:
    patterns = [str(pattern) for pattern in as_list(argument, given, "patterns of names")]
    for pattern in patterns:
        if not any(matrix.is_named_by(pattern) for matrix in found):
            msg = f"{argument}={pattern!r} matches no layer.{_hint(pattern, found)}"
            raise InputError(msg)
    return patterns


def _hint(pattern: str, found: Sequence[Matrix]) -> str:
    """The names nearest to a pattern; to the last part of one that begins with a star."""
    names = [matrix.name for matrix in found if not matrix.detail]
    last_parts = {_last(matrix.name): matrix.name for matrix in reversed(found)}
    close = get_close_matches(_last(pattern), last_parts, n=3, cutoff=0.5) if "*" in pattern else []
    return (
        nearest(pattern, names)
        or (f" Did you mean {' or '.join(repr(last_parts[last]) for last in close)}?" if close else "")
        or f" The layers are: {', '.join(names[:8])}{' …' if names[8:] else ''}."
    )


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _sizes(selection: Selection) -> tuple[int, float]:
    given: dict[str, Any] = {"min_eigenvalues": selection.min_eigenvalues, "max_eigenvalues": selection.max_eigenvalues}
    for name, value in given.items():
        if not (isinstance(value, int) and value >= 1) and not (name == "max_eigenvalues" and value is None):
            msg = f"{name}= is a whole number from 1 on, got {value!r}"
            raise InputError(msg)
    low, high = given.values()
    if high is not None and high < low:
        msg = f"max_eigenvalues={high} is below min_eigenvalues={low}: no matrix has so many and so few"
        raise InputError(msg)
    return low, math.inf if high is None else high


def _unreadable(matrix: Matrix) -> str:
    if matrix.unreadable:
        return matrix.unreadable
    if matrix.outline is None:
        try:
            check_kind(matrix.read())
        except UnreadableError as error:
            return error.reason
    return f"fewer than {MIN_EIGENVALUES} eigenvalues" if eigenvalues_of(matrix) < MIN_EIGENVALUES else ""


def _unclaimed(name: str, parameter: Tensor) -> str:
    if parameter.ndim < 2:
        return "vectors"
    return "biases" if "bias" in name else f"{parameter.ndim}-D parameters whose layout no module tells"
