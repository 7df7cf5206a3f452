"""Measure how far one optimizer step moves each weight, from a few of its elements, between readings.

On an accelerator nothing waits: the numbers are computed behind the training's own kernels and copied to pinned memory,
and they are read at a later step, when they are there.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from esdmon.schedule.step_sample import StepSample
from esdmon.weights.device.sample import sample_value
from esdmon.weights.matrix import Matrix

_NONE = StepSample(math.nan, math.nan, math.nan)
_ELEMENTS = 256  # of each matrix; our choice


@dataclass(slots=True)
class _Group:
    """The weights of one device and dtype."""

    names: list[str] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)


@final
class StepSampler:
    """Compare samples of weights before and after a step.

    Only weights that are parameters themselves are sampled: to read one that is computed takes long, and may run code
    of the model. Sharded ones and those that hold no numbers are left out too.
    """

    def __init__(self) -> None:
        self._weights: dict[str, tuple[Matrix, Tensor]] = {}
        self._before: dict[str, Tensor] = {}
        self._last: dict[str, StepSample] = {}
        self._arriving: list[tuple[list[str], Tensor, Callable[[], bool]]] = []

    def watch(self, matrices: Iterable[Matrix]) -> None:
        """Take these weights from now on: those of a model that was just searched for them."""
        self._weights = {}
        for matrix in matrices:
            with suppress(Exception):  # the reading reports why
                if not matrix.unreadable and matrix.outline is None and _is_plain(weight := matrix.read()):
                    self._weights[matrix.name] = matrix, weight

    def begin(self) -> None:
        """Take the samples before a step."""
        self._before = self._sampled()

    def end(self) -> None:
        """Take the samples after it, and begin to compare those of the same weight."""
        groups: dict[tuple[torch.device, int], _Group] = {}
        for name, now in self._sampled().items():
            before = self._before.get(name)
            if before is not None and before.shape == now.shape and before.device == now.device:
                group = groups.setdefault((now.device, now.numel()), _Group())
                group.names.append(name)
                group.parts += [before, now]
        for (device, _), group in groups.items():
            self._compare(device, group)
        self._before = {}

    def take(self) -> dict[str, StepSample]:
        """Return what has been compared since the last call, without waiting for the rest."""
        found: dict[str, StepSample] = {}
        waiting = []
        for names, norms, is_there in self._arriving:
            if not is_there():
                waiting.append((names, norms, is_there))
                continue
            for name, (before, now, moved) in zip(names, norms.tolist(), strict=True):
                ratio = moved / before if before > 0 else (math.inf if moved > 0 else 0.0)
                found[name] = StepSample(now, ratio, now / before - 1 if before > 0 else 0.0)
        self._arriving = waiting
        self._last |= found
        return found

    def last(self, name: str) -> StepSample:
        """Return the last sample of a weight; all NaN if there is none."""
        return self._last.get(name, _NONE)

    def state_dict(self) -> dict[str, dict[str, Tensor] | dict[str, list[float]]]:
        """Return the samples before the next step, if they were taken, and what the last ones showed."""
        return {
            "before": {name: sample.cpu() for name, sample in self._before.items()},
            "last": {name: list(sample) for name, sample in self._last.items()},
        }

    def restore(self, before: Mapping[str, Tensor], last: Mapping[str, list[float]]) -> None:
        """Continue from a `state_dict()`."""
        weights = self._weights
        self._before = {name: sample.to(weights[name][1].device) for name, sample in before.items() if name in weights}
        self._last, self._arriving = {name: StepSample(*sample) for name, sample in last.items()}, []

    def _sampled(self) -> dict[str, Tensor]:
        """Return up to 256 elements of each weight, in float32."""
        samples: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, (matrix, weight) in self._weights.items():
                with suppress(Exception):
                    samples[name] = sample_value(matrix, weight, _ELEMENTS).float()
        return samples

    def _compare(self, device: torch.device, group: _Group) -> None:
        pairs = torch.stack(group.parts).reshape(len(group.names), 2, -1)
        three = torch.stack((pairs[:, 0], pairs[:, 1], pairs[:, 1] - pairs[:, 0]), dim=1)
        norms = torch.linalg.vector_norm(three, dim=2)
        if device.type != "cuda":
            self._arriving.append((group.names, norms.cpu(), lambda: True))
            return
        copy = torch.empty(norms.shape, dtype=norms.dtype, pin_memory=True).copy_(norms, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record(torch.cuda.current_stream(device))
        self._arriving.append((group.names, copy, event.query))


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and not hasattr(weight, "placements") and weight.device.type != "meta"
