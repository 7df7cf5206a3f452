"""How far weights have moved between readings, from a sample of their elements."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from esdmon.weights.matrix import Matrix
from esdmon.weights.readable import check_readable

_SAMPLE = 4096
_MEMORY = 64 << 20  # bytes of all samples together, at 4 bytes an element
_GOLDEN = (5**0.5 - 1) / 2


@final
class Drift:
    """‖ΔW‖/‖W‖ for each matrix, on up to 4096 of its elements, and 64 MB in all: never a copy of a large model.

    The elements sit at multiples of the golden ratio modulo 1: evenly spread, along no row or column, and without
    drawing a random number.
    """

    def __init__(self) -> None:
        self._size = _SAMPLE
        self._samples: dict[str, Tensor] = {}

    def share_among(self, matrices: int) -> None:
        """Take samples of a size that so many have room for: smaller ones from 4096 matrices on."""
        self._size = max(1, min(_SAMPLE, _MEMORY // 4 // max(1, matrices)))

    def update(self, matrix: Matrix) -> float:
        """The ratio since the last call for this matrix; NaN at the first, or where the shape has changed.

        Raises:
            UnreadableError: as `read_spectrum` does for what holds no numbers.
        """
        before = self._samples.pop(matrix.name, None)
        self._samples[matrix.name] = now = self._sample(matrix).cpu()
        return _ratio(before, now)

    def look(self, matrices: Iterable[Matrix]) -> dict[str, float]:
        """The ratios since the last `update` of each, which stays what is compared with.

        NaN for what cannot be read or is not finite, infinite for what could not be then and can be now.
        """
        samples: dict[str, Tensor] = {}
        ratios: dict[str, float] = {}
        for matrix in matrices:
            ratios[matrix.name] = math.nan
            with suppress(Exception):  # the reading says why
                samples[matrix.name] = self._sample(matrix)
        for name, now in _on_cpu(samples).items():
            ratio = _ratio(self._samples.get(name), now)
            ratios[name] = math.inf if math.isnan(ratio) and bool(now.isfinite().all()) else ratio
        return ratios

    def fingerprint(self, matrices: Sequence[Matrix]) -> str:
        """The same for the same weights to the last bit, by the names of all and a few elements of each."""
        digest = hashlib.blake2b(digest_size=16)
        for matrix in matrices:
            digest.update(matrix.name.encode())
            with suppress(Exception):  # the same on all ranks, or else they differ
                digest.update(self._sample(matrix, _FEW).cpu().double().numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """The samples, by the matrices' names, in the dtypes of the weights."""
        return dict(self._samples)

    def prepare(self, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Return what compares with these from then on, wherever `torch.load` has put them."""
        samples = {name: sample.cpu() for name, sample in state.items() if sample.device.type != "meta"}

        def take_over() -> None:
            self._samples = samples

        return take_over

    def _sample(self, matrix: Matrix, size: int | None = None) -> Tensor:
        with torch.no_grad():
            weight = matrix.read().detach()
            check_readable(weight)
            stack = matrix.to_stack(weight) if _holds_others(matrix, weight.shape) else weight
            return stack.take(_positions(stack.numel(), size or self._size, weight.device))


_FEW = 16  # elements of each matrix in a fingerprint


def _holds_others(matrix: Matrix, shape: torch.Size) -> bool:
    """Whether the weight holds more than this matrix; where not, its elements need not be brought into a stack."""
    return math.prod(shape) != math.prod(matrix.stack_shape())


def _on_cpu(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In one transfer from each device: each waits for all that the device has to do."""
    kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, sample in samples.items():
        kinds.setdefault((sample.device, sample.dtype), []).append(name)
    moved: dict[str, Tensor] = {}
    for (device, _), names in kinds.items():
        if device.type == "cpu":
            moved |= {name: samples[name] for name in names}
            continue
        sizes = [samples[name].numel() for name in names]
        moved |= dict(
            zip(names, torch.cat([samples[name] for name in names]).cpu().split_with_sizes(sizes), strict=True)
        )
    return moved


def _ratio(before: Tensor | None, now: Tensor) -> float:
    if before is None or before.shape != now.shape:
        return math.nan
    norm = float(before.double().norm())
    moved = float((now.double() - before.double()).norm())
    return moved / norm if norm > 0 else (math.inf if moved > 0 else 0.0)


@lru_cache(maxsize=64)
def _positions(count: int, size: int, device: torch.device) -> Tensor:
    if count <= size:
        return torch.arange(count, device=device)
    return (torch.arange(size, dtype=torch.float64) * _GOLDEN).frac().mul(count).long().to(device)
