"""From a weight to its eigenvalues.

Route: X = AᵀA on the shorter side, then a values-only symmetric solver: 3 to 9 times cheaper than singular values. In
float32 it leaves at most 5e-7 λmax of an eigenvalue that is 0 (both solvers, M from 64 to 4096). Where more than 1 % of
the spectrum lies under 1e-6 λmax the rank would depend on that, and where the power law begins under 1e-4 λmax its
alpha might: then it is done again in float64.
"""

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from esdmon.errors import InputError
from esdmon.spectrum import Elements, Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.weights.device.precision import rounds_products, weight_now, with_double, without_autocast
from esdmon.weights.device.readable import MIN_EIGENVALUES, check_readable
from esdmon.weights.device.solvers import Solver, blocks, solve_torch
from esdmon.weights.matrix import Matrix, UnreadableError

_SMALL = 1e-6
_SMALL_SHARE = 0.01
_LOW_XMIN = 1e-4  # of λmax: above, alpha in float32 is within 6e-5 of that in float64; below, within 0.03 (320 draws)
_SEED = 0  # of the shuffle: the same at each reading, so that what changes is the weight
_SAFE_EXPONENT = 30  # of two: squares and their sums over any side stay within float32
PRECISIONS = ("auto", "exact")


def check_precision(precision: str) -> str:
    """`auto`: float32 where that is safe. `exact`: float64 throughout."""
    if precision not in PRECISIONS:
        msg = f"precision= is one of {', '.join(PRECISIONS)}; got {precision!r}"
        raise InputError(msg)
    return precision


def read_spectrum(
    matrix: Matrix, *, precision: str = "auto", also: Collection[str] = (), solver: Solver = solve_torch
) -> Spectrum:
    """The spectrum of a weight as it is now, of zero rows and columns freed.

    Args:
        matrix: the handle on the weight.
        precision: see `check_precision`.
        also: "vectors" for eigenvectors, in float64, at about three times the cost; "shuffled" for the eigenvalues of
            the same elements in random order, at about twice. The order is that of a generator of its own, seeded.
        solver: what to use on a CPU; elsewhere it is torch.

    Raises:
        UnreadableError: with a status and a reason: no numbers in it, not finite, all zero, too few eigenvalues.
    """
    weight = weight_now(matrix)
    check_readable(weight)
    weight = with_double(weight)
    if weight.device.type != "cpu":
        solver = solve_torch
    with torch.no_grad(), without_autocast(weight.device.type):
        return _read(matrix, weight, precision, also, solver)


def _read(matrix: Matrix, weight: Tensor, precision: str, also: Collection[str], solver: Solver) -> Spectrum:
    stack, elements, scale = _prepare(matrix.to_stack(weight))
    n, m = max(stack.shape[1:]), min(stack.shape[1:])
    _check_size(stack)
    to_spectrum = scale**2 / n
    # The user may have allowed TF32 or bfloat16 products for speed; a spectrum cannot bear them.
    rounded = solver is solve_torch and rounds_products(stack.device.type)
    exact = precision == "exact" or stack.dtype == torch.float64 or rounded
    vectors = shuffled = None
    if "shuffled" in also:
        shuffled = solver(_shuffled(stack), torch.float64 if exact else torch.float32) * to_spectrum

    def spectrum(lam: Floats, used: str) -> Spectrum:
        return Spectrum.from_eigenvalues(
            lam * to_spectrum,
            shape=(n, m),
            # What stands for a low-rank product has its singular values, and elements of its own.
            elements=None if matrix.view == "lora-delta" else elements,
            dtype=str(weight.dtype).removeprefix("torch."),
            view=matrix.view,
            precision=used,
            vectors=vectors,
            shuffled=shuffled,
        )

    if "vectors" in also:
        lam, vectors = _eigenvectors(stack)
        return spectrum(lam, "float64")
    if not exact:
        quick = spectrum(solver(stack, torch.float32), "float32")
        if _is_safe(quick):
            return quick
    return spectrum(solver(stack, torch.float64), "float64")


def _is_safe(quick: Spectrum) -> bool:
    """Whether nothing that is read off a spectrum in float32 depends on what float32 cannot tell."""
    few_small = np.mean(quick.eigenvalues < _SMALL * quick.lambda_max) <= _SMALL_SHARE
    return bool(few_small) and not quick.power_law.xmin < _LOW_XMIN * quick.lambda_max


def _check_size(stack: Tensor) -> None:
    count = stack.shape[0] * min(stack.shape[1:])
    if count < MIN_EIGENVALUES:
        raise UnreadableError("skipped", f"{count} eigenvalues, readings start at {MIN_EIGENVALUES}")


def _prepare(stack: Tensor) -> tuple[Tensor, Elements, float]:
    """A stack without zero rows and columns, divided by a scale; the elements before that; the scale.

    16-bit numbers stay so: a solver converts them block by block.
    """
    every = _in_memory_order(stack)
    minimum, maximum = (float(x) for x in torch.aminmax(every))
    if not (np.isfinite(minimum) and np.isfinite(maximum)):
        bad = int((~torch.isfinite(stack)).sum())
        raise UnreadableError("nonfinite", f"{bad} of {stack.numel()} elements are NaN or infinite")
    largest = max(abs(minimum), abs(maximum))
    if largest == 0:
        _check_size(stack)
        raise UnreadableError("degenerate", "all weights are zero")
    scale = _safe_scale(largest)
    if scale != 1:
        stack = (stack if stack.dtype == torch.float64 else stack.float()) / scale
        every = _in_memory_order(stack)
    variance, mean = _moments(every)
    zero_rows = zero_columns = zeros = 0
    if float(torch.linalg.vector_norm(every, -math.inf)) == 0:  # the smallest |element|
        stack, zero_rows, zero_columns = _drop_zeros(stack)
        zeros = stack.numel() - int(torch.count_nonzero(stack))
    elements = Elements(mean * scale, variance * scale**2, minimum, maximum, zero_rows, zero_columns, zeros)
    return stack, elements, scale


def _in_memory_order(stack: Tensor) -> Tensor:
    """The same elements, so that what looks at all of them need not copy a convolution's slices first."""
    return stack.permute(sorted(range(stack.ndim), key=stack.stride, reverse=True))


def _moments(every: Tensor) -> tuple[float, float]:
    """Variance and mean of all elements, in float32 or better; by blocks, each in the same half a MB of memory."""
    dtype = torch.promote_types(every.dtype, torch.float32)
    parts = blocks(every)
    mean = float(torch.stack([part.sum(dtype=dtype) for part in parts]).double().sum()) / every.numel()
    room = torch.empty(parts[0].shape, dtype=dtype, device=every.device)
    norms = [torch.linalg.vector_norm(room.narrow(-2, 0, part.shape[-2]).copy_(part).sub_(mean)) for part in parts]
    return float(torch.stack(norms).double().square().sum()) / every.numel(), mean


def _safe_scale(largest: float) -> float:
    """A power of two by which elements can be divided, without rounding, so that their squares fit float32."""
    exponent = math.frexp(largest)[1]
    return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0 ** max(-126, min(126, exponent))


def _drop_zeros(stack: Tensor) -> tuple[Tensor, int, int]:
    """Without the rows and columns that are zero in every slice, and how many those were."""
    nonzero = (stack != 0).any(dim=0)
    rows, columns = nonzero.any(dim=1), nonzero.any(dim=0)
    dead_rows, dead_columns = int((~rows).sum()), int((~columns).sum())
    if dead_rows:
        stack = stack[:, rows]
    if dead_columns:
        stack = stack[:, :, columns]
    return stack, dead_rows, dead_columns


def _eigenvectors(stack: Tensor) -> tuple[Floats, Floats]:
    """Eigenvalues (slices, M) and eigenvectors (slices, M, M) of AᵀA, on the shorter side of A."""
    tall = (stack if stack.shape[1] >= stack.shape[2] else stack.mT).double()
    lam, vectors = torch.linalg.eigh(tall.mT @ tall)
    return np.abs(lam.cpu().numpy()), vectors.cpu().numpy()


def _shuffled(stack: Tensor) -> Tensor:
    """The same elements in an order that leaves the user's random state alone."""
    order = torch.randperm(stack.numel(), generator=torch.Generator("cpu").manual_seed(_SEED), device="cpu")
    return stack.reshape(-1)[order.to(stack.device)].reshape(stack.shape)
