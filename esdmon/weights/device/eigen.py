"""Read a weight, and compute its spectrum: on its device, or from arrays in another process.

Which spectrum, and in which precision: see `esdmon.spectrum.decomposition`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.decomposition import Precision, Weight, spectrum_of
from esdmon.spectrum.hu2025 import window_starts
from esdmon.spectrum.margins import Array, Bools
from esdmon.spectrum.preparation import Operations, prepare, shuffled_order
from esdmon.spectrum.recent_laws import Laws
from esdmon.spectrum.scales import Scales
from esdmon.spectrum.separable import separable_laws
from esdmon.weights.device.blocks import widened
from esdmon.weights.device.directions import directions_of
from esdmon.weights.device.margins import Margins, equalise, scales_of
from esdmon.weights.device.precision import on_float64_device, read_weight, rounds_products, without_autocast
from esdmon.weights.device.rest import scales_of_rest
from esdmon.weights.device.solvers import Solver, gathered, solve_lapack, solve_torch
from esdmon.weights.device.sums import sum_up
from esdmon.weights.device.traps import far_elements
from esdmon.weights.matrix import Matrix
from esdmon.weights.validation import min_eigenvalues

Directions: TypeAlias = tuple[Floats, Floats | None]
"""The result of `directions_of`."""
_LARGE = 1 << 20  # elements from which no contiguous copy is made of all scattered slices: 4 MB in float32


def read_spectrum(
    matrix: Matrix,
    *,
    precision: str = "auto",
    kind: str = "",
    also: Collection[str] = (),
    solver: Solver = solve_torch,
    laws: Laws = separable_laws,
    last_directions: Floats | None = None,
) -> Spectrum:
    """Compute the spectrum of the current weight, with dead rows, columns and slices removed.

    Args:
        matrix: the handle on the weight.
        precision: "auto" or "exact"; see `check_precision`.
        kind: kind of layer, as `layer_type_of` names it.
        also: "vectors" adds eigenvectors, in float64, at about three times the cost; "shuffled" adds the eigenvalues of
            the same elements in random order, from a seeded generator, at about twice the cost; "equalised" those of
            the matrix with equal scales, at about twice the cost; "windows" those of square windows that cover it, at
            up to N/M times the cost; "directions" the strongest singular vectors, and their angles with those of the
            weight that this one has come from, at up to six times the cost.
        solver: computes the eigenvalues of a weight on a CPU; on other devices torch does.
        laws: computes the laws of noise with the scales of rows and columns.
        last_directions: those of the last reading, for `also` with "directions".

    Raises:
        UnreadableError: if the weight holds no numbers, NaN or infinities, only zeros, or too few eigenvalues.
    """
    weight = on_float64_device(read_weight(matrix))
    with torch.no_grad(), without_autocast(weight.device.type):
        stack = _stack_of(matrix, weight)
        exact = precision == "exact" or _needs_float64(stack)
        properties = _properties(matrix, weight, kind=kind, exact=exact, also=also)
        solver = solver if stack.device.type == "cpu" else solve_torch
        stack, margins, facts = prepare(_arranged(stack, solver), properties, _OPERATIONS)
        spectrum = spectrum_of(_TensorStack(stack, margins, solver), facts, laws)
        directions = _directions(matrix, weight, also)
        return spectrum if directions is None else spectrum.with_directions(*directions, last_directions)


@dataclass(frozen=True, slots=True)
class Exported:
    """A weight as an array, whose spectrum another process computes."""

    weight: Weight
    stack: Array
    directions: Directions | None
    """The strongest directions, if they were requested."""


def export(matrix: Matrix, *, precision: str = "auto", kind: str = "", also: Collection[str] = ()) -> Exported:
    """Read a weight for another process; the arguments are those of `read_spectrum`.

    Raises:
        UnreadableError: if the weight holds no numbers.
    """
    weight = on_float64_device(read_weight(matrix))
    with torch.no_grad(), without_autocast(weight.device.type):
        stack = widened(_stack_of(matrix, weight)).cpu()
        exact = precision == "exact" or _needs_float64(stack)
        properties = _properties(matrix, weight, kind=kind, exact=exact, also=also)
        return Exported(properties, stack.numpy(), _directions(matrix, weight, also))


def _needs_float64(stack: Tensor) -> bool:
    """Return whether a stack has float64 numbers, or is on a device that may round float32 products."""
    # On CUDA eigenvalues are computed in float64 in any case; where the product has to be, all is.
    return stack.dtype == torch.float64 or (stack.device.type == "cuda" and rounds_products("cuda"))


def _properties(matrix: Matrix, weight: Tensor, *, kind: str, exact: bool, also: Collection[str]) -> Weight:
    return Weight(
        dtype=str(weight.dtype).removeprefix("torch."),
        view=matrix.view,
        kind=kind,
        exact=exact,
        also=frozenset(also),
        least=min_eigenvalues(matrix.view),
    )


def _stack_of(matrix: Matrix, weight: Tensor) -> Tensor:
    """Return the stack whose spectrum is read."""
    stack = matrix.to_stack(weight)
    return stack if matrix.core is None else matrix.core(stack)


def _directions(matrix: Matrix, weight: Tensor, also: Collection[str]) -> Directions | None:
    return directions_of(matrix, weight) if "directions" in also and matrix.core is None else None


@final
@dataclass(frozen=True, slots=True)
class _TensorStack:
    """A stack of a weight on its device; see `decomposition.Stack`."""

    stack: Tensor
    margins: Margins
    solver: Solver

    def eigenvalues(self, precision: Precision, *, of: str = "weight") -> Floats:
        """Return the eigenvalues of AᵀA, (slices, M)."""
        stack = self.stack if of == "weight" else _DERIVED[of](gathered(self.stack), self.margins)
        return self.solver(stack, torch.float64 if precision == "float64" else torch.float32)

    def eigenvectors(self) -> tuple[Floats, Floats]:
        """Return eigenvalues (slices, M) and eigenvectors (slices, M, M) of AᵀA, on the shorter side of A."""
        stack = gathered(self.stack)
        tall = (stack if stack.shape[1] >= stack.shape[2] else stack.mT).double()
        lam, vectors = torch.linalg.eigh(tall.mT @ tall)
        return np.abs(lam.cpu().numpy()), vectors.cpu().numpy()

    def singular_values(self) -> Floats:
        """Return the singular values."""
        values: Floats = torch.linalg.svdvals(self.stack).cpu().numpy()
        return values

    def scales(self) -> Scales:
        """Return the scales of rows and columns."""
        return scales_of(self.stack, self.margins)

    def scales_of_rest(self, counts: Sequence[int]) -> Scales:
        """Return those of the rest without the strongest directions of each slice."""
        return scales_of_rest(self.stack, counts)


def _arranged(stack: Tensor, solver: Solver) -> Tensor:
    """Return the stack, or a contiguous copy of scattered slices; large ones LAPACK copies itself, a few at a time."""
    # In 16 bits, where each pass converts as well, that takes longer than it saves.
    is_left = solver is solve_lapack and stack.numel() >= _LARGE and stack.element_size() > 2
    return stack if is_left else gathered(stack)


def _divide(stack: Tensor, scale: float) -> Tensor:
    return (stack if stack.dtype == torch.float64 else stack.float()) / scale


def _keep(stack: Tensor, mask: Bools, dimension: int) -> Tensor:
    return stack[(slice(None),) * dimension + (torch.from_numpy(mask),)]


def _shuffled(stack: Tensor) -> Tensor:
    """Return the elements in a random order, without touching the user's random state."""
    order = torch.from_numpy(shuffled_order(stack.numel()))
    return stack.reshape(-1)[order.to(stack.device)].reshape(stack.shape)


def _windows(stack: Tensor) -> Tensor:
    """Return the square windows that cover each matrix, (windows, M, M)."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    _, m, n = wide.shape
    return torch.cat([wide[:, :, start : start + m] for start in window_starts(n, m)])


_DERIVED: dict[str, Callable[[Tensor, Margins], Tensor]] = {
    "shuffled": lambda stack, _: _shuffled(stack),
    "equalised": equalise,
    "windows": lambda stack, _: _windows(stack),
}
_OPERATIONS: Operations[Tensor, Margins] = Operations(  # none converts a whole stack of 16 bits
    sum_up=sum_up,
    count_nonfinite=lambda stack: int((~torch.isfinite(stack)).sum()),
    count_zeros=lambda stack: stack.numel() - int(torch.count_nonzero(stack)),
    is_double=lambda stack: stack.dtype == torch.float64,
    divide=_divide,
    keep=_keep,
    far_elements=far_elements,
)
