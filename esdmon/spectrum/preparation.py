"""Prepare a stack of matrices for its spectrum: compute statistics of elements, drop what is dead.

The steps are in `prepare`. It calls `Operations`, which exist twice: here for numpy arrays, and in
`esdmon.weights.device` for tensors on their device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from esdmon.errors import UnreadableError
from esdmon.spectrum.decomposition import Facts, Weight
from esdmon.spectrum.elements import Elements, TrapElements
from esdmon.spectrum.hu2025 import window_starts
from esdmon.spectrum.lapack import ArrayStack
from esdmon.spectrum.margins import Array, Bools, Margins, Sides, equalise, gathered_blocks
from esdmon.spectrum.spectrum import PRODUCTS
from esdmon.spectrum.traps import parts_of_trap

CANCELS = 0.5
"""Share of mean² in the mean square above which their difference loses more than one bit; our choice."""
_SEED = 0  # of the shuffle
_MAX_EXPONENT = 500  # of two: squares stay within float64
_SAFE_EXPONENT = 30  # of two: squares and their sums over any side stay within float32


class _HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


_Stack = TypeVar("_Stack", bound=_HasShape)
_Sides = TypeVar("_Sides", bound=Sides)


@dataclass(frozen=True, slots=True)
class Sums(Generic[_Sides]):
    """Statistics of all elements, computed in float32 or better. If elements are NaN or infinite, so is an extreme."""

    minimum: float
    maximum: float
    mean: float
    variance: float
    may_have_zeros: bool
    """True if the square of an element is zero."""
    margins: _Sides

    @property
    def largest(self) -> float:
        """Return the largest |w|."""
        return max(abs(self.minimum), abs(self.maximum))


@dataclass(frozen=True, slots=True)
class FarElements:
    """The elements of a stack that are far from the mean."""

    count: int
    squares: float
    """Sum of their squared distances from the mean."""
    farthest: tuple[int, int, int]
    """Slice, row and column of the element that is farthest from the mean."""
    value: float
    """Value of that element."""


@dataclass(frozen=True, slots=True)
class Operations(Generic[_Stack, _Sides]):
    """What `prepare` does with a stack of one type, of shape (slices, rows, columns)."""

    sum_up: Callable[[_Stack], Sums[_Sides]]
    count_nonfinite: Callable[[_Stack], int]
    count_zeros: Callable[[_Stack], int]
    is_double: Callable[[_Stack], bool]
    divide: Callable[[_Stack, float], _Stack]
    keep: Callable[[_Stack, Bools, int], _Stack]
    """Return the slices, rows or columns of a mask; the number is that of the dimension."""
    far_elements: Callable[[_Stack, float, float], FarElements]
    """Return the elements that are farther than a limit, the last number, from a mean."""


def prepare(stack: _Stack, weight: Weight, operations: Operations[_Stack, _Sides]) -> tuple[_Stack, _Sides, Facts]:
    """Return a stack in a safe scale and without what is dead, its margins, and what is known of the weight.

    Args:
        stack: (slices, rows, columns).
        weight: properties of the weight.
        operations: those for the type of the stack.

    Raises:
        UnreadableError: if the weight contains NaN or infinities, only zeros, or too few eigenvalues.
    """
    sums = original = operations.sum_up(stack)
    _check_elements(stack, sums, weight.least, operations)
    scale = _safe_scale(sums.largest, is_double=operations.is_double(stack))
    if scale != 1:
        stack = operations.divide(stack, scale)
        sums = operations.sum_up(stack)
    slices, is_product = sums.margins.alive_slices(stack.shape), weight.view in PRODUCTS
    if not (is_product or slices.all()):
        stack = operations.keep(stack, slices, 0)
        sums = operations.sum_up(stack)
    whole, margins = stack, sums.margins
    if not is_product:  # the rows of the matrix that represents a product are not units of a layer
        stack, margins = _without_dead(stack, margins, operations)
    weak_rows, weak_columns = margins.weak() if math.prod(stack.shape) else (0, 0)
    elements = Elements(
        sums.mean * scale,
        sums.variance * scale**2,
        original.minimum,
        original.maximum,
        zero_rows=whole.shape[1] - stack.shape[1],
        zero_columns=whole.shape[2] - stack.shape[2],
        zeros=operations.count_zeros(stack) if sums.may_have_zeros else 0,
        rows=stack.shape[1],
        columns=stack.shape[2],
        weak_rows=weak_rows,
        weak_columns=weak_columns,
        zero_slices=slices.size - whole.shape[0],
        slices=stack.shape[0],
    )
    _check_size(stack.shape, weight.least, elements)
    shape = max(stack.shape[1:]), min(stack.shape[1:])
    if max(parts_of_trap(elements, *shape)) > 1:
        elements = replace(elements, trap=_trap_elements(whole, elements, shape, scale, operations))
    return stack, margins, Facts(weight, shape, scale, elements)


def _without_dead(stack: _Stack, margins: _Sides, operations: Operations[_Stack, _Sides]) -> tuple[_Stack, _Sides]:
    """Return a stack and its margins without the rows and columns that are dead in all slices."""
    rows, columns = margins.alive()
    if rows.all() and columns.all():
        return stack, margins
    for dimension, alive in ((1, rows), (2, columns)):
        if not alive.all():
            stack = operations.keep(stack, alive, dimension)
    return stack, margins.keep(rows, columns)


def _check_elements(stack: _Stack, sums: Sums[_Sides], least: int, operations: Operations[_Stack, _Sides]) -> None:
    """Raise for a weight of zeros only, and if squares of elements, or their sums, are outside the range of float64.

    Raises:
        UnreadableError: with the reason.
    """
    if not (math.isfinite(sums.minimum) and math.isfinite(sums.maximum)):
        bad, size = operations.count_nonfinite(stack), math.prod(stack.shape)
        raise UnreadableError("nonfinite", f"{bad} of {size} elements are NaN or infinite")
    largest = sums.largest
    if largest == 0:
        _check_size(stack.shape, least)  # a weight that is also too small is skipped
        raise UnreadableError("degenerate", "all weights are zero")
    if abs(math.frexp(largest)[1]) > _MAX_EXPONENT:
        why = f"its largest element is {largest:.0e}, whose square is outside of float64"
        raise UnreadableError("nonfinite" if largest > 1 else "degenerate", why)


def _check_size(shape: tuple[int, ...], least: int, elements: Elements | None = None) -> None:
    """Raise for a stack with too few eigenvalues.

    Args:
        shape: shape without dead rows and columns.
        least: smallest number of eigenvalues of a weight that is read.
        elements: statistics, with the numbers of dead rows and columns; None if none were dropped.

    Raises:
        UnreadableError: with the reason.
    """
    count = shape[0] * min(shape[1:])
    if count < least:
        reason = f"{count} eigenvalue{'' if count == 1 else 's'}; at least {least} are needed"
        dead = elements.dead_units if elements else ""
        raise UnreadableError("skipped", f"{dead} dead; the rest has {reason}" if dead else reason)


def _safe_scale(largest: float, *, is_double: bool) -> float:
    """Return a power of two: dividing by it does not round, and the squares of the quotients fit float32."""
    exponent, limit = math.frexp(largest)[1], _MAX_EXPONENT if is_double else 126
    return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0 ** max(-limit, min(limit, exponent))


def _trap_elements(
    stack: _Stack,
    elements: Elements,
    shape: tuple[int, int],
    scale: float,
    operations: Operations[_Stack, _Sides],
) -> TrapElements:
    """Return the elements that cause a trap; see `esdmon.spectrum.traps`.

    Args:
        stack: dead rows and columns included, in units of `scale`.
        elements: statistics, in units of the weight.
        shape: (N, M) without dead rows and columns.
        scale: number that the weight was divided by.
        operations: those for the type of the stack.
    """
    n, m = shape
    mean, limit = elements.mean / scale, (elements.variance**0.5 / scale) * (n * m) ** 0.25
    far, size = operations.far_elements(stack, mean, limit), math.prod(stack.shape)
    total = size * (elements.variance + elements.mean**2)
    share = (far.squares * scale**2 + size * elements.mean**2) / total
    _, row, column = far.farthest
    return TrapElements(far.count, row, column, far.value * scale, share)


def shuffled_order(size: int) -> NDArray[np.int64]:
    """Return a random order, the same at each reading, so that changes are due to the weight only."""
    return np.random.default_rng(_SEED).permutation(size)


def prepare_array(stack: Array, weight: Weight) -> tuple[ArrayStack, Facts]:
    """Return the arguments of `spectrum_of` for an array of float32 or float64; see `prepare`."""
    stack, margins, facts = prepare(stack, weight, _OPERATIONS)
    derived = {name: make(stack, margins) for name, make in _DERIVED.items() if name in weight.also}
    return ArrayStack({"weight": stack} | derived, margins), facts


def sum_up(stack: Array) -> Sums[Margins]:
    """Return the statistics of a (slices, rows, columns) stack, in one pass over memory."""
    _, n_rows, n_columns = stack.shape
    by_column = np.zeros((stack.shape[0], n_columns))
    extremes, by_row, total, smallest = [], [], 0.0, math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        for part in gathered_blocks(stack):
            squares = np.square(part)
            extremes.append((part.min(), part.max()))
            total += float(part.sum())
            smallest = min(smallest, float(squares.min()))
            by_row.append(squares.sum(axis=2))
            by_column += squares.sum(axis=1)
        margins = Margins(np.concatenate(by_row, axis=1, dtype=np.float64) / n_columns, by_column / n_rows)
        minimum, maximum = float(np.min(extremes)), float(np.max(extremes))
        mean, mean_square = total / stack.size, float(margins.columns.mean())
        variance = mean_square - mean * mean
        if minimum == maximum:
            variance = 0.0  # without rounding errors
        elif not mean * mean < CANCELS * mean_square:
            variance = sum(float(np.square(part - mean).sum()) for part in gathered_blocks(stack)) / stack.size
    return Sums(minimum, maximum, mean, variance, smallest == 0, margins)


def _keep(stack: Array, mask: Bools, dimension: int) -> Array:
    return stack[(slice(None),) * dimension + (mask,)]


def _far_elements(stack: Array, mean: float, limit: float) -> FarElements:
    away = np.abs(stack - stack.dtype.type(mean))
    beyond = away[away > limit].astype(np.float64)
    index, row, column = (int(each) for each in np.unravel_index(int(away.argmax()), away.shape))
    value = float(stack[index, row, column])
    return FarElements(beyond.size, float(np.square(beyond).sum()), (index, row, column), value)


def _windows(stack: Array) -> Array:
    """Return the square windows that cover each matrix, (windows, M, M)."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    m, n = wide.shape[1:]
    return np.concatenate([wide[:, :, start : start + m] for start in window_starts(n, m)])


_DERIVED: dict[str, Callable[[Array, Margins], Array]] = {
    "shuffled": lambda stack, _: stack.reshape(-1)[shuffled_order(stack.size)].reshape(stack.shape),
    "equalised": equalise,
    "windows": lambda stack, _: _windows(stack),
}
_OPERATIONS: Operations[Array, Margins] = Operations(
    sum_up=sum_up,
    count_nonfinite=lambda stack: int(np.sum(~np.isfinite(stack))),
    count_zeros=lambda stack: stack.size - int(np.count_nonzero(stack)),
    is_double=lambda stack: stack.dtype == np.float64,
    divide=lambda stack, scale: stack / stack.dtype.type(scale),
    keep=_keep,
    far_elements=_far_elements,
)
