"""Prepare a stack of matrices for its spectrum: compute statistics of elements, drop what is dead.

This module is for numpy arrays; `esdmon.weights.device` does the same for tensors on their device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from esdmon.errors import UnreadableError
from esdmon.spectrum.decomposition import Facts
from esdmon.spectrum.elements import Elements, TrapElements
from esdmon.spectrum.hu2025 import window_starts
from esdmon.spectrum.lapack import ArrayStack
from esdmon.spectrum.margins import Array, Margins, Sides, equalise, gathered_blocks
from esdmon.spectrum.spectrum import PRODUCTS
from esdmon.spectrum.traps import parts_of_trap

CANCELS = 0.5
"""Share of mean² in the mean square above which their difference loses more than one bit; our choice."""
_Sides = TypeVar("_Sides", bound=Sides)
_SEED = 0  # of the shuffle
_MAX_EXPONENT = 500  # of two: squares stay within float64
_SAFE_EXPONENT = 30  # of two: squares and their sums over any side stay within float32


@dataclass(frozen=True, slots=True)
class Weight:
    """Properties of a weight that is stored in an array."""

    dtype: str
    """Type in which the weight is stored; the array may have a wider type."""
    view: str
    kind: str
    exact: bool
    """True if everything is computed in float64."""
    also: frozenset[str]
    """The requested optional parts, as in `Facts`."""
    least: int
    """Smallest number of eigenvalues of a weight that is read."""


def prepare(stack: Array, weight: Weight) -> tuple[ArrayStack, Facts]:
    """Return the arguments of `spectrum_of`.

    Args:
        stack: (slices, rows, columns), of float32 or float64.
        weight: properties of the weight.

    Raises:
        UnreadableError: if the weight contains NaN or infinities, only zeros, or too few eigenvalues.
    """
    sums = sum_up(stack)
    largest = check_extremes(
        sums.minimum, sums.maximum, size=stack.size, count_bad=lambda: int(np.sum(~np.isfinite(stack)))
    )
    check_zero(largest, stack.shape, weight.least)
    minimum, maximum, scale = sums.minimum, sums.maximum, safe_scale(largest, is_double=stack.dtype == np.float64)
    if scale != 1:
        stack = stack / stack.dtype.type(scale)
        sums = sum_up(stack)
    slices, is_product = sums.margins.alive_slices(stack.shape), weight.view in PRODUCTS
    if not (is_product or slices.all()):
        stack = stack[slices]
        sums = sum_up(stack)
    whole, margins, dead_rows, dead_columns = stack, sums.margins, 0, 0
    if not is_product:  # the rows of the matrix that represents a product are not units of a layer
        stack, margins, dead_rows, dead_columns = _drop_dead(stack, margins)
    weak_rows, weak_columns = margins.weak() if stack.size else (0, 0)
    elements = Elements(
        sums.mean * scale,
        sums.variance * scale**2,
        minimum,
        maximum,
        zero_rows=dead_rows,
        zero_columns=dead_columns,
        zeros=stack.size - int(np.count_nonzero(stack)) if sums.may_have_zeros else 0,
        rows=stack.shape[1],
        columns=stack.shape[2],
        weak_rows=weak_rows,
        weak_columns=weak_columns,
        zero_slices=slices.size - whole.shape[0],
        slices=stack.shape[0],
    )
    check_size(stack.shape, weight.least, elements)
    shape = max(stack.shape[1:]), min(stack.shape[1:])
    elements = replace(elements, trap=_trap_elements(whole, elements, shape, scale))
    exact = weight.exact or whole.dtype == np.float64
    facts = Facts(shape, scale, elements, weight.dtype, weight.view, weight.kind, exact, weight.also)
    derived = {name: make(stack, margins) for name, make in _DERIVED.items() if name in weight.also}
    return ArrayStack({"weight": stack} | derived, margins), facts


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


def check_size(shape: tuple[int, ...], least: int, elements: Elements | None = None) -> None:
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


def check_extremes(minimum: float, maximum: float, *, size: int, count_bad: Callable[[], int]) -> float:
    """Return the largest |w|; raise if squares of elements, or their sums, are outside the range of float64.

    A weight of zeros only raises nothing here: `check_zero` does that.

    Args:
        minimum: the smallest element.
        maximum: the largest.
        size: number of elements.
        count_bad: returns the number of elements that are NaN or infinite.

    Raises:
        UnreadableError: with the reason.
    """
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise UnreadableError("nonfinite", f"{count_bad()} of {size} elements are NaN or infinite")
    largest = max(abs(minimum), abs(maximum))
    if largest and abs(math.frexp(largest)[1]) > _MAX_EXPONENT:
        why = f"its largest element is {largest:.0e}, whose square is outside of float64"
        raise UnreadableError("nonfinite" if largest > 1 else "degenerate", why)
    return largest


def check_zero(largest: float, shape: tuple[int, ...], least: int) -> None:
    """Raise for a weight of zeros only, even if it is also too small.

    Raises:
        UnreadableError: with the reason.
    """
    if largest == 0:
        check_size(shape, least)
        raise UnreadableError("degenerate", "all weights are zero")


def safe_scale(largest: float, *, is_double: bool) -> float:
    """Return a power of two: dividing by it does not round, and the squares of the quotients fit float32."""
    exponent, limit = math.frexp(largest)[1], _MAX_EXPONENT if is_double else 126
    return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0 ** max(-limit, min(limit, exponent))


def shuffled_order(size: int) -> NDArray[np.int64]:
    """Return a random order, the same at each reading, so that changes are due to the weight only."""
    return np.random.default_rng(_SEED).permutation(size)


def _drop_dead(stack: Array, margins: Margins) -> tuple[Array, Margins, int, int]:
    """Remove rows and columns that are dead in all slices; return the rest, its margins and the numbers removed."""
    rows, columns = margins.alive()
    dead_rows, dead_columns = int(np.sum(~rows)), int(np.sum(~columns))
    if dead_rows:
        stack = stack[:, rows]
    if dead_columns:
        stack = stack[:, :, columns]
    return stack, margins.keep(rows, columns) if dead_rows or dead_columns else margins, dead_rows, dead_columns


def _trap_elements(stack: Array, elements: Elements, shape: tuple[int, int], scale: float) -> TrapElements | None:
    """Return the elements that cause a trap; None without a trap. See `esdmon.spectrum.traps`."""
    n, m = shape
    if not max(parts_of_trap(elements, n, m)) > 1:
        return None
    mean, limit = elements.mean / scale, (elements.variance**0.5 / scale) * (n * m) ** 0.25
    away = np.abs(stack - stack.dtype.type(mean))
    beyond = away[away > limit].astype(np.float64)
    index, row, column = (int(each) for each in np.unravel_index(int(away.argmax()), away.shape))
    total = stack.size * (elements.variance + elements.mean**2)
    share = (float(np.square(beyond).sum()) * scale**2 + stack.size * elements.mean**2) / total
    return TrapElements(beyond.size, row, column, float(stack[index, row, column]) * scale, share)


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
