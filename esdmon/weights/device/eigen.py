"""Compute the spectrum of a weight.

Method: X = AᵀA on the shorter side, then a values-only symmetric solver: 3 to 9 times cheaper than singular values. In
float32 it leaves at most 5e-7 λmax of an eigenvalue that is 0 (both solvers, M from 64 to 4096). Where more than 1 % of
the spectrum lies under 1e-6 λmax the rank would depend on that, and where the power law begins under 1e-4 λmax its
alpha might depend on it: then it is computed again in float64. AᵀA has the square of A's condition, so of a float64
weight with eigenvalues that float64 loses in it the singular values of A itself are computed.
"""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from esdmon.records import Status
from esdmon.spectrum import Elements, PhaseThresholds, Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.bulk import is_noise
from esdmon.spectrum.hu2025 import window_starts
from esdmon.spectrum.recent_laws import Laws
from esdmon.spectrum.separable import separable_laws
from esdmon.spectrum.spectrum import PRODUCTS
from esdmon.weights.device.directions import directions_of
from esdmon.weights.device.margins import Margins, equalise, scales_of
from esdmon.weights.device.precision import on_float64_device, read_weight, rounds_products, without_autocast
from esdmon.weights.device.solvers import Solver, solve_torch
from esdmon.weights.device.sums import sum_up
from esdmon.weights.device.traps import take_apart
from esdmon.weights.matrix import Matrix, UnreadableError
from esdmon.weights.validation import check_readable, min_eigenvalues

_SMALL = 1e-6  # of λmax: twice the largest error of float32
_SMALL_SHARE = 0.01  # of the eigenvalues; our choice
_LOW_XMIN = 1e-4  # of λmax: above, alpha in float32 is within 6e-5 of that in float64; below, within 0.03 (320 draws)
_MIN_M = PhaseThresholds().min_m
_SEED = 0  # of the shuffle: the same at each reading, so that only the weight changes
_MAX_EXPONENT = 500  # of two: squares stay within float64
_SAFE_EXPONENT = 30  # of two: squares and their sums over any side stay within float32


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
    """Compute the spectrum of the current weight, with dead rows and columns removed.

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
        UnreadableError: where the weight holds no numbers, NaN or infinities, only zeros, or too few eigenvalues.
    """
    weight = read_weight(matrix)
    check_readable(weight)
    weight = on_float64_device(weight)
    if weight.device.type != "cpu":
        solver = solve_torch
    with torch.no_grad(), without_autocast(weight.device.type):
        spectrum = _read(matrix, weight, precision, also, kind=kind, solver=solver, laws=laws)
        if "directions" in also and matrix.core is None:
            directions, cosines = directions_of(matrix, weight)
            return spectrum.with_directions(directions, cosines, last_directions)
    return spectrum


def _read(
    matrix: Matrix,
    weight: Tensor,
    precision: str,
    also: Collection[str],
    *,
    kind: str,
    solver: Solver,
    laws: Laws,
) -> Spectrum:
    stack = matrix.to_stack(weight)
    stack, elements, scale, margins = _prepare(stack if matrix.core is None else matrix.core(stack), matrix.view)
    n, m = max(stack.shape[1:]), min(stack.shape[1:])
    _check_size(stack, matrix.view)
    to_spectrum = scale**2 / n
    # The user may have allowed TF32 or bfloat16 products for speed; they are too coarse for a spectrum.
    rounded = solver is solve_torch and rounds_products(stack.device.type)
    exact = precision == "exact" or stack.dtype == torch.float64 or rounded
    dtype = torch.float64 if exact else torch.float32
    vectors = None
    shuffled = solver(_shuffled(stack), dtype) * to_spectrum if "shuffled" in also else None
    equalised = solver(equalise(stack, margins), dtype) / n if "equalised" in also else None
    windows = solver(_windows(stack), dtype) * scale**2 / m if "windows" in also else None
    # The matrix that represents a product has its singular values, but not its elements.
    has_elements = matrix.view not in PRODUCTS

    def spectrum(lam: Floats, used: str, *, from_gram: bool = True) -> Spectrum:
        return Spectrum.from_eigenvalues(
            lam * to_spectrum,
            shape=(n, m),
            elements=elements if has_elements else None,
            dtype=str(weight.dtype).removeprefix("torch."),
            view=matrix.view,
            kind=kind,
            precision=used,
            from_gram=from_gram,
            vectors=vectors,
            shuffled=shuffled,
            equalised=equalised,
            windows=windows,
        )

    def with_scales(one: Spectrum) -> Spectrum:
        # Noise of equal scales needs none, and so do matrices that are too small for a phase.
        plain = one.plain_bulk
        if not has_elements or m < _MIN_M or plain is None or is_noise(plain):
            return one
        return one.with_scales(scales_of(stack, margins), laws)

    if "vectors" in also:
        lam, vectors = _eigenvectors(stack)
        return with_scales(spectrum(lam, "float64"))
    if not exact:
        quick = spectrum(solver(stack, torch.float32), "float32")
        if _is_safe(quick):
            return with_scales(quick)
    full = spectrum(solver(stack, torch.float64), "float64")
    has_lost = full.nonzero.size < full.eigenvalues.size
    if weight.dtype == torch.float64 and has_lost:
        full = spectrum(torch.linalg.svdvals(stack).square().cpu().numpy(), "float64", from_gram=False)
    return with_scales(full)


def _is_safe(quick: Spectrum) -> bool:
    """Return whether the rank and alpha of a float32 spectrum do not depend on float32's rounding errors."""
    few_small = np.mean(quick.eigenvalues < _SMALL * quick.lambda_max) <= _SMALL_SHARE
    return bool(few_small) and not quick.power_law.xmin < _LOW_XMIN * quick.lambda_max


def _check_size(stack: Tensor, view: str) -> None:
    count, least = stack.shape[0] * min(stack.shape[1:]), min_eigenvalues(view)
    if count < least:
        raise UnreadableError("skipped", f"{count} eigenvalues; at least {least} are needed")


def _prepare(stack: Tensor, view: str) -> tuple[Tensor, Elements, float, Margins]:
    """Return the stack without dead rows and columns, divided by a scale; its elements' statistics; scale; margins.

    16-bit numbers are not converted here: a solver converts them block by block.
    """
    if 1 not in stack.stride()[-2:]:  # slices of a convolution: each of many passes would gather them from all over
        stack = stack.contiguous()
    sums = sum_up(stack)
    if not (math.isfinite(sums.minimum) and math.isfinite(sums.maximum)):
        bad = int((~torch.isfinite(stack)).sum())
        raise UnreadableError("nonfinite", f"{bad} of {stack.numel()} elements are NaN or infinite")
    largest = max(abs(sums.minimum), abs(sums.maximum))
    if largest == 0:
        _check_size(stack, view)
        raise UnreadableError("degenerate", "all weights are zero")
    scale = _safe_scale(largest, stack.dtype)
    if abs(math.frexp(largest)[1]) > _MAX_EXPONENT:
        status: Status = "nonfinite" if largest > 1 else "degenerate"
        raise UnreadableError(status, f"its largest element is {largest:.0e}, whose square is outside of float64")
    minimum, maximum = sums.minimum, sums.maximum
    if scale != 1:
        stack = (stack if stack.dtype == torch.float64 else stack.float()) / scale
        sums = sum_up(stack)
    whole, margins, dead_rows, dead_columns = stack, sums.margins, 0, 0
    if view not in PRODUCTS:  # the rows of the matrix that represents a product are not units of a layer
        stack, margins, dead_rows, dead_columns = _drop_dead(stack, margins)
    zeros = stack.numel() - int(torch.count_nonzero(stack)) if sums.may_have_zeros else 0
    rows, columns = stack.shape[1:]
    weak_rows, weak_columns = margins.weak() if stack.numel() else (0, 0)
    elements = Elements(
        sums.mean * scale,
        sums.variance * scale**2,
        minimum,
        maximum,
        zero_rows=dead_rows,
        zero_columns=dead_columns,
        zeros=zeros,
        rows=rows,
        columns=columns,
        weak_rows=weak_rows,
        weak_columns=weak_columns,
    )
    if stack.numel():
        trap = take_apart(whole, elements, n=max(rows, columns), m=min(rows, columns), scale=scale)
        elements = replace(elements, trap=trap)
    return stack, elements, scale, margins


def _safe_scale(largest: float, dtype: torch.dtype) -> float:
    """Return a power of two; elements divided by it, which does not round them, have squares that fit float32."""
    exponent, limit = math.frexp(largest)[1], _MAX_EXPONENT if dtype == torch.float64 else 126
    return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0 ** max(-limit, min(limit, exponent))


def _drop_dead(stack: Tensor, margins: Margins) -> tuple[Tensor, Margins, int, int]:
    """Remove rows and columns that are dead in all slices; return the rest, its margins and the numbers removed."""
    rows, columns = margins.alive()
    dead_rows, dead_columns = int(np.sum(~rows)), int(np.sum(~columns))
    if dead_rows:
        stack = stack[:, torch.from_numpy(rows)]
    if dead_columns:
        stack = stack[:, :, torch.from_numpy(columns)]
    return stack, margins.keep(rows, columns) if dead_rows or dead_columns else margins, dead_rows, dead_columns


def _eigenvectors(stack: Tensor) -> tuple[Floats, Floats]:
    """Return eigenvalues (slices, M) and eigenvectors (slices, M, M) of AᵀA, on the shorter side of A."""
    tall = (stack if stack.shape[1] >= stack.shape[2] else stack.mT).double()
    lam, vectors = torch.linalg.eigh(tall.mT @ tall)
    return np.abs(lam.cpu().numpy()), vectors.cpu().numpy()


def _shuffled(stack: Tensor) -> Tensor:
    """Return the elements in a random order, without touching the user's random state."""
    order = torch.randperm(stack.numel(), generator=torch.Generator("cpu").manual_seed(_SEED), device="cpu")
    return stack.reshape(-1)[order.to(stack.device)].reshape(stack.shape)


def _windows(stack: Tensor) -> Tensor:
    """Return the square windows that cover each matrix, (windows, M, M)."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    _, m, n = wide.shape
    return torch.cat([wide[:, :, start : start + m] for start in window_starts(n, m)])
