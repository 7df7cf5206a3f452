"""Measure how far one optimizer step moves each weight, from a few of its elements, between readings.

The same elements of the gradients are compared with zero, since many optimizers keep moving a weight whose gradient is
zero.

On an accelerator nothing waits: the numbers are computed behind the training's own kernels, and are read at a later
step.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from esdmon.schedule.step_sample import StepSample
from esdmon.weights.device.sample import relative_move, sample_matrix, sample_value
from esdmon.weights.device.transfers import Fetched, Transfers
from esdmon.weights.matrix import Matrix

_NONE = StepSample(math.nan, math.nan, math.nan, start_ratio=math.nan)
_ELEMENTS = 256  # of each matrix; our choice

_Samples: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Four samples of a weight: when first seen, after the last step sampled, before this step, and after it. The fifth is
1 where the gradient is zero, and else 0."""


@final
class StepSampler:
    """Compare samples of weights before and after a step.

    Only weights that are parameters are sampled: reading one that is computed takes long, and may run code of the
    model. For a sharded parameter this rank's fragment is sampled, if it has 256 elements. Weights that are a part of a
    sharded parameter are omitted, since a fragment may contain none of their elements, and so are weights without
    numbers.

    Args:
        transfers: bring the numbers to the CPU.
    """

    def __init__(self, transfers: Transfers | None = None) -> None:
        self._transfers = transfers or Transfers()
        self._weights: dict[str, tuple[Matrix, Tensor | None]] = {}
        """Each with its parameter; None for a sharded one, of which the fragment is sampled."""
        self._shapes: dict[str, torch.Size] = {}
        """Of the parameters: samples of two shapes have other places, and cannot be compared."""
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}
        self._last: dict[str, StepSample] = {}
        self._arriving: list[tuple[tuple[str, ...], int, Fetched]] = []
        """Names, the number of elements in the samples of each, and their norms."""

    def watch(self, matrices: Iterable[Matrix]) -> None:
        """Sample these weights from now on; weights that were sampled before keep their start.

        The samples of a weight that has changed its shape are discarded.
        """
        self._weights = {}
        for matrix in matrices:
            with suppress(Exception):  # the reading reports why
                if _is_fragment(matrix):
                    self._weights[matrix.name] = matrix, None
                elif not matrix.unreadable and matrix.outline is None and _is_plain(weight := matrix.read()):
                    self._weights[matrix.name] = matrix, weight
        self._forget_reshaped()
        known = {name: self._start[name] for name in self._weights if name in self._start}
        self._start = known | self._sampled(name for name in self._weights if name not in known)

    def begin(self) -> None:
        """Sample the weights before a step."""
        self._forget_reshaped()
        self._before = self._sampled(self._weights)

    def end(self) -> None:
        """Sample the weights after the step, and begin to compare both samples of each."""
        groups: dict[tuple[torch.device, int], dict[str, _Samples]] = {}
        after = self._sampled(self._weights)
        for name, now in after.items():
            before = self._before.get(name)
            if before is None or not _is_alike(before, now):
                continue
            earlier = self._after.get(name, before)
            if not _is_alike(earlier, now):
                earlier = before
            start = self._start.get(name, before)
            if not _is_alike(start, now):
                start = self._start[name] = before
            group = groups.setdefault((now.device, now.numel()), {})
            group[name] = start, earlier, before, now, self._zero_gradient(name, now)
        for (_, size), group in groups.items():
            self._compare(group, size)
        self._before, self._after = {}, after

    def take(self) -> dict[str, StepSample]:
        """Return the samples that have finished since the last call, without waiting for the others."""
        found: dict[str, StepSample] = {}
        waiting = []
        for names, size, norms in self._arriving:
            if not norms.is_there():
                waiting.append((names, size, norms))
                continue
            for name, (start, earlier, before, now, zeros, shifted, moved, since_start) in zip(
                names, norms.read().tolist(), strict=True
            ):
                found[name] = StepSample(
                    norm=now,
                    ratio=relative_move(moved, before),
                    growth=now / before - 1 if before > 0 else 0.0,
                    shift=relative_move(shifted, earlier),
                    start_ratio=relative_move(since_start, max(now, start)),
                    zero_gradient=round(zeros**2) / size if zeros >= 0 else math.nan,
                )
        self._arriving = waiting
        self._last |= found
        return found

    def last(self, name: str) -> StepSample:
        """Return the last sample of a weight; all NaN if there is none."""
        return self._last.get(name, _NONE)

    def state_dict(self) -> dict[str, dict[str, Tensor] | dict[str, list[float]]]:
        """Return the samples: when first seen, before the next step and after the last; and the last results.

        Samples of fragments are left out: a resumed run may be sharded in another way.
        """
        return {
            "start": self._of_weights(self._start),
            "before": self._of_weights(self._before),
            "after": self._of_weights(self._after),
            "last": {name: list(sample) for name, sample in self._last.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from a `state_dict()`; states of earlier versions lack `after` and `start`."""
        self._before, self._after = self._placed(state["before"]), self._placed(state.get("after", {}))
        self._start |= self._placed(state.get("start", {}))
        self._last, self._arriving = {name: StepSample(*sample) for name, sample in state["last"].items()}, []

    def _forget_reshaped(self) -> None:
        """Discard the samples of weights whose shape has changed."""
        for name, (_, weight) in self._weights.items():
            if weight is not None and self._shapes.setdefault(name, weight.shape) != weight.shape:
                self._shapes[name] = weight.shape
                samples: tuple[dict[str, Any], ...] = (self._start, self._before, self._after, self._last)
                for kept in samples:
                    kept.pop(name, None)

    def _of_weights(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: sample.cpu() for name, sample in samples.items() if self._parameter(name) is not None}

    def _placed(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the samples of weights that are watched, each on the device of its weight."""
        placed = {}
        for name, sample in samples.items():
            weight = self._parameter(name)
            if weight is not None:
                placed[name] = sample.to(weight.device)
        return placed

    def _parameter(self, name: str) -> Tensor | None:
        """Return the parameter of a weight; None for a fragment, and for a weight that is not sampled."""
        _, weight = self._weights.get(name, (None, None))
        return weight

    def _sampled(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return up to 256 elements of each of these weights, in float32."""
        samples: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in names:
                with suppress(Exception):
                    samples[name] = self._sample(name).float()
        return samples

    def _sample(self, name: str) -> Tensor:
        matrix, weight = self._weights[name]
        return sample_matrix(matrix, _ELEMENTS) if weight is None else sample_value(matrix, weight, _ELEMENTS)

    def _zero_gradient(self, name: str, now: Tensor) -> Tensor:
        """Return 1 for each sampled element of a gradient that is zero, and else 0; NaN if there is no gradient."""
        matrix, weight = self._weights[name]
        with torch.no_grad(), suppress(Exception):
            if weight is not None and weight.is_leaf and weight.grad is not None:
                zeros = (sample_value(matrix, weight.grad, _ELEMENTS) == 0).float()
                if _is_alike(zeros, now):
                    return zeros
        return torch.full_like(now, math.nan)

    def _compare(self, group: Mapping[str, _Samples], size: int) -> None:
        samples = torch.stack([each for samples in group.values() for each in samples]).reshape(len(group), 5, size)
        moves = samples.narrow(1, 1, 3).diff(dim=1)
        since_start = samples.narrow(1, 3, 1) - samples.narrow(1, 0, 1)
        norms = torch.linalg.vector_norm(torch.cat((samples, moves, since_start), dim=1), dim=2)
        self._arriving.append((tuple(group), size, self._transfers.fetch(norms)))


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.device == other.device


def _is_fragment(matrix: Matrix) -> bool:
    """Return whether a matrix is one whole parameter, of which this rank holds a large enough fragment."""
    if len(matrix.shards) != 1 or matrix.unreadable or matrix.probe is None:
        return False
    _, shard = matrix.shards[0]
    is_all = matrix.size().n_elements == shard.shape.numel()
    is_enough = shard.fragment is not None and shard.fragment.n_elements >= _ELEMENTS
    return is_all and is_enough and shard.dtype.is_floating_point


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and not hasattr(weight, "placements") and weight.device.type != "meta"
