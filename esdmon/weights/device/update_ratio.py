"""How far weights have moved between readings, from a sample of their elements."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from esdmon.weights.device.precision import weight_now
from esdmon.weights.device.readable import check_readable
from esdmon.weights.matrix import Matrix

_SAMPLE = 4096  # elements at most; our choice
_MEMORY = 64 << 20  # bytes of the samples of all matrices together, at 4 bytes an element
_GOLDEN = (5**0.5 - 1) / 2
_FEW = 16  # elements of each matrix in a fingerprint


@final
class Drift:
    """‖ΔW‖/‖W‖ for each matrix, on up to 4096 of its elements, and 64 MB in all: never a copy of a large model.

    The elements sit at multiples of the golden ratio modulo 1: evenly spread, along no row or column, and without
    drawing a random number. Of an adapter the factors are sampled, and of W − W₀ both terms, so that nothing is
    computed as a whole to see it move.
    """

    def __init__(self) -> None:
        self._size = share(1)
        self._samples: dict[str, Tensor] = {}

    def share_among(self, matrices: int) -> None:
        """Take samples of a size that so many have room for: smaller ones from 4096 matrices on."""
        self._size = share(matrices)

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
        return sample(matrix, size or self._size)


def _on_cpu(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In one transfer from each device: each waits for all that the device has to do."""
    kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, taken in samples.items():
        kinds.setdefault((taken.device, taken.dtype), []).append(name)
    moved: dict[str, Tensor] = {}
    for (device, _), names in kinds.items():
        if device.type == "cpu":
            moved |= {name: samples[name] for name in names}
            continue
        parts = torch.cat([samples[name].reshape(-1) for name in names]).cpu()
        for name, part in zip(names, parts.split_with_sizes([samples[name].numel() for name in names]), strict=True):
            moved[name] = part.reshape(samples[name].shape)
    return moved


def _ratio(before: Tensor | None, now: Tensor) -> float:
    """Of several factors the root of the sum of their squares, as of a product whose factors move independently."""
    if before is None or before.shape != now.shape:
        return math.nan
    rows = zip(before.double().reshape(-1, before.shape[-1]), now.double().reshape(-1, now.shape[-1]), strict=True)
    return math.hypot(*(_ratio_of_one(was, row) for was, row in rows))


def _ratio_of_one(before: Tensor, now: Tensor) -> float:
    norm, moved = float(before.norm()), float((now - before).norm())
    return moved / norm if norm > 0 else (math.inf if moved > 0 else 0.0)


def sample(matrix: Matrix, size: int) -> Tensor:
    """Return up to `size` elements of a matrix as it is now, or what it gives in their place (`Matrix.probe`).

    Raises:
        UnreadableError: as `read_spectrum` does for what holds no numbers.
    """
    if matrix.probe is not None:
        with torch.no_grad():
            return matrix.probe(size)
    weight = weight_now(matrix)
    check_readable(weight)
    return elements(matrix, weight, size)


def share(matrices: int) -> int:
    """Return the elements that may be sampled of each of so many matrices: fewer from 4096 matrices on."""
    return max(1, min(_SAMPLE, _MEMORY // 4 // max(1, matrices)))


def elements(matrix: Matrix, weight: Tensor, size: int) -> Tensor:
    """Return the sample of a matrix from a weight of its own shape, which may be that of another model."""
    slices, rows, columns = matrix.stack_shape_of(weight)
    # Where the weight holds nothing but this matrix, its elements need not be brought into a stack.
    whole = weight.numel() == slices * rows * columns
    return some(weight if whole else matrix.to_stack(weight), size)


def some(tensor: Tensor, size: int) -> Tensor:
    """Return up to `size` of a tensor's elements."""
    return tensor.take(_positions(tensor.numel(), size, tensor.device))


def some_of_sample(taken: Tensor, count: int, size: int) -> Tensor:
    """Return from a sample of `count` elements a smaller one: what `some` would have taken of them."""
    return taken[:size] if taken.numel() < count else some(taken, size)


@lru_cache(maxsize=64)
def _positions(count: int, size: int, device: torch.device) -> Tensor:
    if count <= size:
        return torch.arange(count, dtype=torch.int64, device=device)
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    return (places * _GOLDEN).frac().mul(count).long().to(device)
