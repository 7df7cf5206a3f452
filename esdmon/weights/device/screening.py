"""Estimate the norms of a weight between two readings, in a few passes over it: ‖W‖_F, and a lower bound of λmax.

The lower bound is the largest eigenvalue of WᵀW on the Krylov space of a few vectors q, WᵀWq, … (Lanczos). The first
vector q is the Ritz vector of the last screening, which is nearly right while the weight moves little. The same number
of power steps leaves an error ten times as large (tests/benchmarks/screening.py). No value is needed in Python, so on
an accelerator all operations are queued behind the training's own kernels, and the result is read at a later step.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from esdmon.records import Screened
from esdmon.weights.device.precision import read_weight, rounds_products, without_autocast
from esdmon.weights.device.sample import GOLDEN_RATIO
from esdmon.weights.device.transfers import Fetched, Transfers
from esdmon.weights.matrix import Matrix

STEPS = 4
"""Vectors of the Krylov space, each a pass over the weight. Our choice."""
FIRST_STEPS = 8
"""The same at the first screening, without a vector to begin with. Our choice."""
_SQUARINGS = 8  # of a matrix of STEPS rows, for its largest eigenvector: gaps of 1 % and more are resolved
_CHUNK = 1 << 20  # elements that are converted and multiplied at a time on a CPU: 4 MB in float32
_BYTES_PER_SECOND = 1e12  # of an accelerator's memory; an H100 reaches three times as much. Not measured
_ROW = 4096  # elements whose squares are summed in float32: a sum of 16 million is off by a thousandth


class _Queued(NamedTuple):
    """The numbers of one weight: ‖W‖_F², and for each slice λmax of WᵀW and its residual."""

    name: str
    step: int
    n: int
    numbers: Tensor


@dataclass(frozen=True, slots=True)
class _Arriving:
    fetched: Fetched
    queued: list[_Queued]


@final
class Screener:
    """Screen weights, and keep a vector of each weight between screenings.

    Only weights that are parameters themselves are screened. Those that are computed, packed or sharded are left out,
    and those on a device without float64.

    Args:
        transfers: bring the numbers to the CPU.
    """

    def __init__(self, transfers: Transfers | None = None) -> None:
        self._transfers = transfers or Transfers()
        self._vectors: dict[str, Tensor] = {}
        self._queued: dict[torch.device, list[_Queued]] = {}
        self._arriving: list[_Arriving] = []

    def screen(self, matrix: Matrix, step: int) -> float | None:
        """Compute the norms of the current weight, or queue that on its device.

        Returns:
            The seconds that it is expected to take on an accelerator, and 0 on the CPU; None for a weight that is not
            screened.
        """
        if not matrix.is_plain:
            return None
        with suppress(Exception), torch.no_grad():  # the reading reports why
            weight = read_weight(matrix)
            device, dtype = weight.device, _dtype(weight)
            size = weight.numel() * dtype.itemsize
            if device.type not in ("cpu", "cuda") or not self._transfers.has_room(device, size):
                return None
            stack = matrix.to_stack(weight)
            tall = stack if stack.shape[-2] >= stack.shape[-1] else stack.mT
            known = self._vectors.get(matrix.name)
            if known is not None and (known.shape != (len(tall), tall.shape[-1], 1) or known.device != device):
                known = None
            start = _first_vector(tall) if known is None else known
            steps = min(FIRST_STEPS if known is None else STEPS, tall.shape[-1])
            with without_autocast(device.type):
                vector, numbers = _screened(tall, start.to(dtype), steps)
            self._vectors[matrix.name] = vector
            queued = _Queued(matrix.name, step, tall.shape[-2], numbers)
            self._queued.setdefault(device, []).append(queued)
            return 0.0 if device.type == "cpu" else 2 * steps * 4 * weight.numel() / _BYTES_PER_SECOND
        return None

    def take(self) -> list[Screened]:
        """Request queued results, and return those that have arrived since the last call, without waiting."""
        if not (self._queued or self._arriving) or self._transfers.is_capturing():
            return []
        for queued in self._queued.values():
            fetched = self._transfers.fetch(torch.cat([each.numbers for each in queued]))
            self._arriving.append(_Arriving(fetched, queued))
        self._queued = {}
        found: list[Screened] = []
        waiting: list[_Arriving] = []
        for arriving in self._arriving:
            if arriving.fetched.is_there():
                found += self._records(arriving)
            else:
                waiting.append(arriving)
        self._arriving = waiting
        return found

    def _records(self, arriving: _Arriving) -> Iterator[Screened]:
        """Yield the arrived norms of each matrix, from the slice with the largest eigenvalue."""
        numbers = arriving.fetched.read().tolist()
        begin = 0
        for name, step, n, queued in arriving.queued:
            square, *pairs = numbers[begin : begin + queued.numel()]
            begin += queued.numel()
            value, residual = max(zip(pairs[::2], pairs[1::2], strict=True))
            if not (all(map(math.isfinite, (square, *pairs))) and value > 0):
                self._vectors.pop(name, None)  # the vector is not finite either
                value, residual = (0.0 if square == 0 else math.nan), math.nan
            yield Screened(name, step, square**0.5, value**0.5, residual / value if value > 0 else math.nan, N=n)

    def forget(self) -> None:
        """Discard queued results and all vectors, since the weights were replaced."""
        self._queued, self._arriving, self._vectors = {}, [], {}

    def keep(self, names: Collection[str]) -> None:
        """Discard the vectors of all other matrices."""
        self._vectors = {name: vector for name, vector in self._vectors.items() if name in names}


def sum_of_squares(tensor: Tensor) -> tuple[Tensor, float]:
    """Return Σ xᵢ² in float64, without dimensions, and the seconds that it is expected to take on an accelerator."""
    is_cpu = tensor.device.type == "cpu"
    with torch.no_grad():
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
        dtype = torch.float64 if flat.dtype == torch.float64 else torch.float32
        rows = flat[: flat.numel() // _ROW * _ROW].view(-1, _ROW)
        # A CPU converts 16 bits before it sums, and there are no norms in float8 on any device.
        parts = (*(torch.split(rows, _CHUNK // _ROW) if is_cpu else [rows]), flat[rows.numel() :].view(1, -1))
        norms = [
            torch.linalg.vector_norm(part.to(dtype) if part.itemsize == 1 else part, dim=1, dtype=dtype)
            for part in parts
        ]
        square = torch.cat(norms).double().square().sum()
    size = flat.numel() * flat.dtype.itemsize
    return square, 0.0 if is_cpu else size / _BYTES_PER_SECOND


def _first_vector(tall: Tensor) -> Tensor:
    """Return a vector for each slice, made on the device and of no random numbers: the fractions of i²·golden ratio."""
    slices, _, m = tall.shape
    places = torch.arange(1, m + 1, dtype=torch.float64, device=tall.device)
    vector = (places.square() * GOLDEN_RATIO).frac() - 0.5
    return vector.to(torch.float32).expand(slices, m).unsqueeze(-1)


def _dtype(weight: Tensor) -> torch.dtype:
    """Return the type to compute in; its products must not be rounded, since vectors have all bits of float32."""
    is_wide = weight.dtype == torch.float64 or rounds_products(weight.device.type)
    return torch.float64 if is_wide else torch.float32


def _screened(tall: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the Ritz vector of each slice, and ‖W‖_F², λmax of WᵀW by slice and the residuals, in float64.

    Args:
        tall: (slices, rows, columns), not fewer rows than columns.
        start: a vector for each slice, in the type to compute in.
        steps: number of vectors.
    """
    dtype = start.dtype
    blocks = _blocks(tall, dtype)
    squares: list[Tensor] = []
    quotients: list[Tensor] = []
    lengths: list[Tensor] = []
    last = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    found = [last]
    scale: Tensor | None = None
    for step in range(steps):
        image, quotient = torch.zeros_like(last), torch.zeros_like(last, dtype=torch.float64).sum(dim=(1, 2))
        for block in blocks:
            part = block.to(dtype)
            if step == 0:
                squares.append(torch.linalg.vector_norm(part, dim=-1).double().square().sum())
            product = part @ last
            quotient += product.double().square().sum(dim=(1, 2))
            image += part.mT @ product
        if scale is None:
            scale = quotient.clamp_min(torch.finfo(torch.float32).tiny)
        image = image / scale.to(dtype).reshape(-1, 1, 1)  # squares of σ² might not be within float32
        basis = torch.cat(found, dim=-1)
        for _ in range(2):  # a second pass removes rounding errors of float32
            image -= basis @ (basis.mT @ image)
        length = torch.linalg.vector_norm(image, dim=(1, 2))
        quotients.append(quotient)
        lengths.append(length.double() * scale)
        last = image / length.clamp_min(torch.finfo(dtype).tiny).reshape(-1, 1, 1)
        found.append(last)
    weights, values = _largest(torch.stack(quotients, dim=-1), torch.stack(lengths, dim=-1))
    vector = torch.cat(found[:-1], dim=-1) @ weights.to(dtype)
    return vector, torch.cat((torch.stack(squares).sum().reshape(1), values.reshape(-1)))


def _largest(quotients: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvector of the tridiagonal matrix of the Lanczos method, its eigenvalue and the residual.

    The matrix is squared repeatedly, since a solver would wait for the device.
    """
    size = quotients.shape[-1]
    between = lengths.narrow(-1, 0, size - 1)
    matrix = quotients.diag_embed() + between.diag_embed(1) + between.diag_embed(-1)
    scale = torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    power = matrix / scale
    for _ in range(_SQUARINGS):
        power = power @ power
    vector = power.narrow(-1, 0, 1)
    vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    image = matrix @ vector
    value = vector.mT @ image
    inside = torch.linalg.vector_norm(image - value * vector, dim=(1, 2))
    outside = lengths.narrow(-1, size - 1, 1) * vector.narrow(1, size - 1, 1).squeeze(-1)
    return vector, torch.stack((value.reshape(-1), torch.hypot(inside, outside.reshape(-1))), dim=-1)


def _blocks(tall: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return blocks of rows: of a large weight on the CPU several, which each step converts; else one, converted."""
    if tall.device.type != "cpu" or tall.numel() <= _CHUNK:
        return (tall.to(dtype),)
    return torch.split(tall, max(1, _CHUNK // tall[:, 0].numel()), dim=-2)
