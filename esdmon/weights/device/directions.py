"""Compute the strongest directions of a weight, and their angles with the directions of the reference weight.

A direction is a left singular vector u of a matrix (rows × columns), on the side of the rows. Directions are computed
in float64 from a Gram matrix of the shorter side, where the strongest are well separated from its rounding errors.
"""

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.shuttleworth2024 import COUNT
from esdmon.weights.matrix import Matrix

_MIN_RELATIVE = 1e-10  # of λmax: below, a Gram matrix in float64 gives no direction


def directions_of(matrix: Matrix, weight: Tensor) -> tuple[Floats, Floats | None]:
    """Return the strongest directions, (slices, count, rows), strongest first, and their cosines with the reference's.

    Args:
        matrix: the handle on the weight.
        weight: its value.

    Returns:
        Rows of length 1, or 0 if the rank is lower. Those of a difference are of the whole weight. The cosines are
        absolute, (slices, count, min(rows, columns)); None for a weight without a reference.

    Raises:
        UnreadableError: for a reference of another shape.
    """
    stack = matrix.to_stack(weight).double()
    if matrix.reference is None:
        return _strongest(stack).mT.cpu().numpy(), None
    reference = matrix.to_stack(matrix.reference().detach()).to(stack)
    if reference.shape != stack.shape:
        raise UnreadableError("skipped", f"its shape is {tuple(stack.shape)}, but {tuple(reference.shape)} before")
    strongest = _strongest(stack + reference if matrix.view == "difference" else stack)
    return strongest.mT.cpu().numpy(), _cosines(strongest, reference).cpu().numpy()


def _strongest(stack: Tensor) -> Tensor:
    """Return the strongest left singular vectors as columns, (slices, rows, count)."""
    is_wide = stack.shape[1] <= stack.shape[2]
    lam, vectors = _decompose(stack if is_wide else stack.mT)
    strongest = vectors[..., :COUNT]
    if not is_wide:
        strongest = stack @ strongest
        strongest = strongest / torch.linalg.vector_norm(strongest, dim=1, keepdim=True).clamp(min=1e-300)
    return strongest * (lam > _MIN_RELATIVE * lam[:, :1])[:, None, :COUNT]


def _cosines(directions: Tensor, reference: Tensor) -> Tensor:
    """Return |cos| with all left singular vectors of the reference, (slices, count, min(rows, columns))."""
    is_wide = reference.shape[1] <= reference.shape[2]
    lam, vectors = _decompose(reference if is_wide else reference.mT)
    is_known = lam > _MIN_RELATIVE * lam[:, :1]
    products = directions.mT @ (vectors if is_wide else reference @ vectors)
    if not is_wide:
        products = products / lam.sqrt().where(is_known, 1.0)[:, None]
    return products.abs() * is_known[:, None]


def _decompose(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of A·Aᵀ, the largest first."""
    lam, vectors = torch.linalg.eigh(wide @ wide.mT)
    return lam.flip(-1), vectors.flip(-1)
