"""Measure how far weights have moved between readings, from a sample of their elements.

A 16-bit weight moves by whole units in the last place, u. If it is rounded from a float32 master copy, an update δ
below u moves it by u with probability |δ|/u, since the exact value may lie anywhere between two 16-bit numbers. So the
observed move d has E|d| = |δ|, but E d² = |δ|·u: its norm can be ten times too large. If most moved elements moved by
one unit, ‖δ‖ is estimated as √(π/2)·Σ|d|/√n. This is correct for normally distributed δ, and a quarter too large if all
δ have one size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from esdmon.weights.device.sample import relative_move, sample_matrix, sample_size
from esdmon.weights.device.transfers import Fetched, Later, Transfers
from esdmon.weights.matrix import Matrix


@dataclass(frozen=True, slots=True)
class _Part:
    """The sample of one matrix, which is a part of a tensor that is fetched."""

    fetched: Fetched
    where: slice
    shape: torch.Size

    def sample(self) -> Tensor:
        return self.fetched.read()[self.where].reshape(self.shape)


@final
class Drift:
    """Measure ‖ΔW‖/‖W‖ of each matrix, from up to 4096 of its elements, of all matrices together up to 64 MB.

    For an adapter the factors are sampled, and for W − W₀ both terms, so that the matrix itself need not be computed.

    Args:
        transfers: bring the samples to the CPU.
    """

    def __init__(self, transfers: Transfers | None = None) -> None:
        self._size = sample_size(1)
        self._transfers = transfers or Transfers()
        self._samples: dict[str, Later] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Of the weights that were sampled: samples of two shapes have other places, and cannot be compared."""
        self._peeked: dict[str, _Part] = {}
        """The last sample of each matrix that was taken by `peek` since its last update."""

    def resize_samples(self, n_matrices: int) -> None:
        """Set the size of the samples by the number of matrices: 4096 elements, fewer for more than 4096 matrices."""
        self._size = sample_size(n_matrices)

    def update(self, matrix: Matrix) -> Callable[[], float]:
        """Make the current weight the new baseline; return a function that returns ‖ΔW‖/‖W‖ since the one before.

        For a 16-bit weight, the ratio of the update before rounding is estimated. The function returns NaN at the first
        call, and if the shape has changed.

        Raises:
            UnreadableError: for a weight that holds no numbers; see `check_readable`.
        """
        before = self._samples.pop(matrix.name, None)
        self._peeked.pop(matrix.name, None)
        now = self._samples[matrix.name] = self._transfers.fetch(sample_matrix(matrix, self._size)).read
        is_alike = self._has_kept_its_shape(matrix)
        self._shapes[matrix.name] = matrix.stack_shape()
        if before is None or not is_alike:
            return lambda: math.nan
        return lambda: _ratio(before(), now(), is_unrounded=True)

    def peek(self, matrices: Iterable[Matrix]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since its last `update`, without changing the baseline.

        It does not wait for an accelerator: if the sample has not arrived yet, the sample of the previous call is
        compared; if there is none since the last update, the matrix is missing.

        NaN for a weight that cannot be read or is not finite; infinite for one whose baseline is missing, or of another
        shape.
        """
        samples: dict[str, Tensor] = {}
        ratios: dict[str, float] = {}
        for matrix in matrices:
            ratios[matrix.name] = math.nan
            with suppress(Exception):  # the reading reports why
                sample = sample_matrix(matrix, self._size)
                if self._has_kept_its_shape(matrix):
                    samples[matrix.name] = sample
                else:
                    ratios[matrix.name] = math.inf
        for name, now in self._fetched(samples):
            earlier, self._peeked[name] = self._peeked.get(name), now
            known = now if now.fetched.is_there() else earlier
            if known is None or not known.fetched.is_there():
                del ratios[name]
            else:
                ratios[name] = self._compare(name, known.sample())
        return ratios

    def _has_kept_its_shape(self, matrix: Matrix) -> bool:
        """Return whether a weight may be compared with its baseline; True if the baseline's shape is not known."""
        shape = matrix.stack_shape()
        return self._shapes.get(matrix.name, shape) == shape

    def _compare(self, name: str, now: Tensor) -> float:
        before = self._samples.get(name)
        ratio = math.nan if before is None else _ratio(before(), now)
        return math.inf if math.isnan(ratio) and bool(now.isfinite().all()) else ratio

    def _fetched(self, samples: Mapping[str, Tensor]) -> Iterator[tuple[str, _Part]]:
        """Fetch samples, in one transfer for each device and dtype."""
        groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, taken in samples.items():
            groups.setdefault((taken.device, taken.dtype), []).append(name)
        for names in groups.values():
            fetched = self._transfers.fetch(torch.cat([samples[name].reshape(-1) for name in names]))
            begin = 0
            for name in names:
                end = begin + samples[name].numel()
                yield name, _Part(fetched, slice(begin, end), samples[name].shape)
                begin = end

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples by the names of the matrices, in the dtypes of the weights."""
        return {name: sample() for name, sample in self._samples.items()}

    def prepare(self, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Parse `state_dict()`, and return a function that makes it the baseline.

        The samples may be on any device, as `torch.load` has put them.
        """
        samples = {name: sample.cpu() for name, sample in state.items() if sample.device.type != "meta"}

        def apply() -> None:
            self._samples = {name: partial(_itself, sample) for name, sample in samples.items()}
            self._shapes.clear()
            self._peeked.clear()

        return apply


def _itself(sample: Tensor) -> Tensor:
    return sample


def _ratio(before: Tensor, now: Tensor, *, is_unrounded: bool = False) -> float:
    """Return ‖ΔW‖/‖W‖; of several factors the root of the sum of squares, as if they moved independently."""
    if before.shape != now.shape:
        return math.nan
    rounding = torch.finfo(now.dtype).eps if is_unrounded and now.dtype in (torch.bfloat16, torch.float16) else 0.0
    rows = zip(before.double().reshape(-1, before.shape[-1]), now.double().reshape(-1, now.shape[-1]), strict=True)
    return math.hypot(*(_ratio_of_factor(was, row, rounding) for was, row in rows))


def _ratio_of_factor(before: Tensor, now: Tensor, rounding: float) -> float:
    norm, moves = float(before.norm()), (now - before).abs()
    moved = min(float(moves.norm()), _unrounded(moves, now, rounding) if rounding else math.inf)
    return relative_move(moved, norm)


def _unrounded(moves: Tensor, now: Tensor, rounding: float) -> float:
    """Return the norm of the update before it was rounded; infinite where most moves are of several units."""
    units = rounding * torch.exp2(torch.frexp(now).exponent.double() - 1)
    seen = moves > 0
    # A move across a power of two is of two of the smaller units, or half of the larger.
    if not bool(seen.any()) or float((moves[seen] / units[seen]).median()) > 1:
        return math.inf
    return math.sqrt(math.pi / 2 / moves.numel()) * float(moves.sum())
