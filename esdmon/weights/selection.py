"""Select the matrices of a model that are read, and count the parameters in them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from torch import Tensor

from esdmon.errors import InputError, as_list, nearest
from esdmon.records import Coverage, Skipped
from esdmon.records.values import whole
from esdmon.weights.matrix import Matrix
from esdmon.weights.non_weights import of_unknown_layout, why_not_a_weight
from esdmon.weights.validation import MIN_EIGENVALUES, min_eigenvalues, why_unreadable


@dataclass(frozen=True, slots=True)
class Selection:
    """Which matrices of a model to read."""

    layers: Sequence[str] | None = None
    """fnmatch patterns on the names of matrices; None selects all that are read by default."""
    exclude: Sequence[str] = ()
    """fnmatch patterns of matrices to leave out; they have precedence over `layers`."""
    min_eigenvalues: int = MIN_EIGENVALUES
    """Matrices with fewer eigenvalues, over all their slices, are left out."""
    max_eigenvalues: int | None = None
    """Matrices with more eigenvalues are left out; None for no limit."""
    may_be_empty: bool = False
    """True if the model may be a part of a larger one, such as a pipeline stage, which may have nothing to read."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A parameter as it counts in the coverage."""

    identity: int
    """Its `id`."""
    n_elements: int
    unclaimed: str
    """The reason to give if no matrix contains it."""

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> "Counted":
        """Return the record of a parameter; `name` is its name in the model."""
        reason = why_not_a_weight(name, parameter) or of_unknown_layout(parameter)
        return cls(id(parameter), parameter.numel(), reason)


def select(found: Sequence[Matrix], selection: Selection) -> dict[str, str]:
    """Return for each matrix the reason why it is left out; empty for a selected matrix.

    Raises:
        InputError: if a size is not a positive integer, or patterns are not a list of names.
    """
    layers = None if selection.layers is None else _patterns("layers", selection.layers)
    exclude = _patterns("exclude", selection.exclude)
    low, high = _limits(selection)
    if layers == []:
        raise InputError("layers= is empty: leave it out to read all layers")
    return {matrix.name: _why_unselected(matrix, layers, exclude) or _why_unfit(matrix, low, high) for matrix in found}


def problems(found: Sequence[Matrix], selection: Selection, reasons: Mapping[str, str]) -> dict[str, InputError]:
    """Return errors by option: for patterns that match no matrix, and if nothing is left to read.

    Args:
        found: all matrices of a model.
        selection: which of them to read.
        reasons: why each is left out, from `select`.
    """
    given = {"layers": selection.layers or (), "exclude": selection.exclude}
    errors = {
        f"{argument}={pattern}": InputError(f"{argument}={pattern!r} matches no layer.{_hint(pattern, found)}")
        for argument, patterns in given.items()
        for pattern in _patterns(argument, patterns)
        if not any(matrix.is_named_by(pattern) for matrix in found)
    }
    if found and all(reasons.values()):
        distinct = dict.fromkeys(reasons[matrix.name] for matrix in found if not matrix.detail)
        errors["read"] = InputError(f"no matrix is left to read: {'; '.join(distinct)}")
    return errors


def coverage(
    parameters: Mapping[str, Counted],
    found: Sequence[Matrix],
    reasons: Mapping[str, str],
    *,
    left_out: Mapping[int, str],
    unread: Mapping[str, str],
) -> Coverage:
    """Count how many of a model's parameters, by element, the selected matrices cover.

    Args:
        parameters: all parameters of the model by name.
        found: all its matrices.
        reasons: why each is left out, from `select`.
        left_out: by id of a parameter, why it is not a matrix, or the error in the search of its module.
        unread: by name of a selected matrix, why its reading gave nothing.
    """
    watched: dict[int, Fraction] = {}
    why: dict[int, str] = dict(left_out)
    for matrix in found:
        reason = reasons[matrix.name] or _why_not_read(matrix) or unread.get(matrix.name, "")
        for parameter in matrix.whole_parameters():
            if reason and not matrix.detail:
                why.setdefault(id(parameter), reason)
            elif not reason:
                watched[id(parameter)] = watched.get(id(parameter), Fraction(0)) + _share(matrix) * parameter.numel()
    skipped = []
    for name, counted in parameters.items():
        left = round(counted.n_elements - watched.get(counted.identity, Fraction(0)))
        if left > 0:
            skipped.append(Skipped(name, left, why.get(counted.identity) or counted.unclaimed))
    total = sum(counted.n_elements for counted in parameters.values())
    return Coverage(total - sum(skip.n_parameters for skip in skipped), total, tuple(skipped))


def n_parameters(matrix: Matrix) -> int:
    """Return how many of a model's parameters, by element, a matrix covers; 0 for one that gives no numbers."""
    if _why_not_read(matrix):
        return 0
    return round(_share(matrix) * sum(parameter.numel() for parameter in matrix.whole_parameters()))


def _share(matrix: Matrix) -> Fraction:
    """Return the share of the parameters behind a matrix that it reads."""
    if matrix.made_of is not None and matrix.outline is None:
        return Fraction(1)
    whole = (matrix.outline or matrix.read)().numel()
    return Fraction(matrix.size().n_elements, whole) if whole else Fraction(0)


def _why_unselected(matrix: Matrix, layers: Sequence[str] | None, exclude: Sequence[str]) -> str:
    if any(matrix.is_named_by(pattern) for pattern in exclude):
        return "left out by exclude="
    if layers is None:
        return matrix.on_request
    if any(matrix.is_named_by(pattern) for pattern in layers):
        return ""
    return matrix.on_request or "left out by layers="


def _why_unfit(matrix: Matrix, low: int, high: float) -> str:
    """Return why the size of a matrix is outside the limits.

    A matrix below the smallest size that is ever read is not left out here: it is listed, and its reading says so.
    """
    size = matrix.size()
    if matrix.unreadable and not size.n_elements:
        return ""  # its size is not known
    if size.n_eigenvalues > high:
        return "left out by max_eigenvalues="
    return "left out by min_eigenvalues=" if low > MIN_EIGENVALUES and size.n_eigenvalues < low else ""


def _why_not_read(matrix: Matrix) -> str:
    """Return why a selected matrix gives no numbers, as far as its type and shape say; empty for one that may."""
    if matrix.unreadable:
        return matrix.unreadable
    if matrix.outline is None and not matrix.shards:
        reason = why_unreadable(matrix.read())
        if reason:
            return reason
    least = min_eigenvalues(matrix.view)
    return f"fewer than {least} eigenvalues" if matrix.size().n_eigenvalues < least else ""


def _patterns(argument: str, given: Sequence[str]) -> list[str]:
    return [str(pattern) for pattern in as_list(argument, given, "patterns of names")]


def _hint(pattern: str, found: Sequence[Matrix]) -> str:
    """Return the names closest to a pattern, by their last parts for a pattern with a star; else the first names."""
    names = [matrix.name for matrix in found if not matrix.detail]
    close = nearest(pattern, names)
    if close:
        return close
    if "*" in pattern:
        by_last_part = {_last_part(matrix.name): matrix.name for matrix in reversed(found)}
        parts = get_close_matches(_last_part(pattern), by_last_part, n=3, cutoff=0.5)
        if parts:
            return f" Did you mean {' or '.join(repr(by_last_part[part]) for part in parts)}?"
    return f" The layers are: {', '.join(names[:8])}{' …' if names[8:] else ''}."


def _last_part(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _limits(selection: Selection) -> tuple[int, float]:
    low, high = _positive("min_eigenvalues", selection.min_eigenvalues), math.inf
    if selection.max_eigenvalues is not None:
        high = _positive("max_eigenvalues", selection.max_eigenvalues)
    if high < low:
        raise InputError(f"max_eigenvalues={high} must not be below min_eigenvalues={low}")
    return low, high


def _positive(argument: str, value: Any) -> int:
    number = whole(value)
    if number is None or number < 1:
        raise InputError(f"{argument}= must be a positive integer; got {value!r}")
    return number
