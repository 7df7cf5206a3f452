"""How far weights have moved between readings, from a sample of their elements."""

from typing import final

import torch

from esdmon.weights.matrix import Matrix
from esdmon.weights.readable import check_readable

_SAMPLE = 4096
_GOLDEN = (5**0.5 - 1) / 2


@final
class Drift:
    """‖ΔW‖/‖W‖ for each matrix, on up to 4096 of its elements: a few MB for a large model, never a copy of it.

    The elements sit at multiples of the golden ratio modulo 1: evenly spread, along no row or column, and without
    drawing a random number.
    """

    def __init__(self) -> None:
        self._samples: dict[str, torch.Tensor] = {}

    def update(self, matrix: Matrix) -> float:
        """The ratio since the last call for this matrix; NaN at the first, or where the shape has changed.

        Raises:
            UnreadableError: as `read_spectrum` does for what holds no numbers.
        """
        with torch.no_grad():
            weight = matrix.read().detach()
            check_readable(weight)
            weight = matrix.to_stack(weight)
            now = weight.take(_positions(weight.numel()).to(weight.device)).cpu()
        before = self._samples.get(matrix.name)
        self._samples[matrix.name] = now
        if before is None or before.shape != now.shape:
            return float("nan")
        norm = float(before.double().norm())
        moved = float((now.double() - before.double()).norm())
        return moved / norm if norm > 0 else (float("inf") if moved > 0 else 0.0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The samples, by the matrices' names, in the dtypes of the weights."""
        return dict(self._samples)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Compare with these from now on."""
        self._samples = dict(state)


def _positions(count: int) -> torch.Tensor:
    if count <= _SAMPLE:
        return torch.arange(count)
    return (torch.arange(_SAMPLE, dtype=torch.float64) * _GOLDEN).frac().mul(count).long()
