"""Measure how far weights have moved between readings, from a sample of their elements.

A 16-bit weight moves by whole units in the last place, u. An update δ below u moves an element by u with probability
|δ|/u, if where it stands between two 16-bit numbers is not known, as beside masters in float32. So E|d| = |δ| of the
move d that is seen, but E d² = |δ|·u: its norm can be ten times too large. Where most elements that moved did so by one
unit, ‖δ‖ is estimated as √(π/2)·Σ|d|/√n, which is right for normally distributed δ, and a quarter too large where all
are of one size.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import final

import torch
from torch import Tensor

from esdmon.weights.device.sample import sample_matrix, sample_size
from esdmon.weights.matrix import Matrix


@final
class Drift:
    """‖ΔW‖/‖W‖ of each matrix, from up to 4096 of its elements, and 64 MB in all: never a copy of a large model.

    Of an adapter the factors are sampled, and of W − W₀ both terms, so that nothing is computed as a whole to see
    whether it moves.
    """

    def __init__(self) -> None:
        self._size = sample_size(1)
        self._samples: dict[str, Tensor] = {}

    def share_among(self, matrices: int) -> None:
        """Set the size of the samples for so many matrices: 4096 elements, and fewer for more than 4096 matrices."""
        self._size = sample_size(matrices)

    def update(self, matrix: Matrix) -> float:
        """Return ‖ΔW‖/‖W‖ since the last call for this matrix, and make the current weight the new baseline.

        Of a 16-bit weight it is that of the update before it was rounded. NaN at the first call, and where the shape
        has changed.

        Raises:
            UnreadableError: for a weight that holds no numbers; see `check_readable`.
        """
        before = self._samples.pop(matrix.name, None)
        self._samples[matrix.name] = now = sample_matrix(matrix, self._size).cpu()
        return _ratio(before, now, is_unrounded=True)

    def look(self, matrices: Iterable[Matrix]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since its last `update`, without changing the baseline.

        NaN for a weight that cannot be read or is not finite; infinite for one that can be compared only from now on.
        """
        samples: dict[str, Tensor] = {}
        ratios: dict[str, float] = {}
        for matrix in matrices:
            ratios[matrix.name] = math.nan
            with suppress(Exception):  # the reading reports why
                samples[matrix.name] = sample_matrix(matrix, self._size)
        for name, now in _to_cpu(samples).items():
            ratio = _ratio(self._samples.get(name), now)
            ratios[name] = math.inf if math.isnan(ratio) and bool(now.isfinite().all()) else ratio
        return ratios

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples by the names of the matrices, in the dtypes of the weights."""
        return dict(self._samples)

    def prepare(self, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Parse `state_dict()`, and return a function that makes it the baseline.

        The samples may be on any device, as `torch.load` has put them.
        """
        samples = {name: sample.cpu() for name, sample in state.items() if sample.device.type != "meta"}

        def apply() -> None:
            self._samples = samples

        return apply


def _to_cpu(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy samples to the CPU in one transfer for each device, since each transfer waits for the device's queue."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, taken in samples.items():
        groups.setdefault((taken.device, taken.dtype), []).append(name)
    moved: dict[str, Tensor] = {}
    for (device, _), names in groups.items():
        if device.type == "cpu":
            moved |= {name: samples[name] for name in names}
            continue
        parts = torch.cat([samples[name].reshape(-1) for name in names]).cpu()
        for name, part in zip(names, parts.split_with_sizes([samples[name].numel() for name in names]), strict=True):
            moved[name] = part.reshape(samples[name].shape)
    return moved


def _ratio(before: Tensor | None, now: Tensor, *, is_unrounded: bool = False) -> float:
    """Return ‖ΔW‖/‖W‖; of several factors the root of the sum of squares, as if they moved independently."""
    if before is None or before.shape != now.shape:
        return math.nan
    rounding = torch.finfo(now.dtype).eps if is_unrounded and now.dtype in (torch.bfloat16, torch.float16) else 0.0
    rows = zip(before.double().reshape(-1, before.shape[-1]), now.double().reshape(-1, now.shape[-1]), strict=True)
    return math.hypot(*(_ratio_of_factor(was, row, rounding) for was, row in rows))


def _ratio_of_factor(before: Tensor, now: Tensor, rounding: float) -> float:
    norm, moves = float(before.norm()), (now - before).abs()
    moved = min(float(moves.norm()), _unrounded(moves, now, rounding) if rounding else math.inf)
    return moved / norm if norm > 0 else (math.inf if moved > 0 else 0.0)


def _unrounded(moves: Tensor, now: Tensor, rounding: float) -> float:
    """Return the norm of the update before it was rounded; infinite where most moves are of several units."""
    units = rounding * torch.exp2(torch.frexp(now).exponent.double() - 1)
    seen = moves > 0
    # A move across a power of two is of two of the smaller units, or half of the larger.
    if not bool(seen.any()) or float((moves[seen] / units[seen]).median()) > 1:
        return math.inf
    return math.sqrt(math.pi / 2 / moves.numel()) * float(moves.sum())
