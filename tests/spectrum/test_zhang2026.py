"""The distance of a spectrum's shape from the last reading: in watched runs, against SVDs in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.sinks import MemorySink
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.zhang2026 import distance


def shape(weight: Tensor, *, pooled: bool = False) -> Floats:
    """σ/Σσ, descending, of one matrix or of the kernel positions of a convolution."""
    stack = weight.detach().double()
    stack = stack.flatten(2).permute(2, 0, 1) if pooled else stack[None]
    sigma = np.concatenate([np.linalg.svd(matrix.numpy(), compute_uv=False) for matrix in stack])
    return np.sort(sigma / sigma.sum())[::-1]


def summed(p: Floats) -> Floats:
    """The 64 largest, and 64 runs of the others whose lengths differ by one at most, the longer ones first."""
    if p.size <= 128:
        return p
    short, longer = divmod(p.size - 64, 64)
    borders = 64 + np.cumsum([0] + [short + 1] * longer + [short] * (64 - longer))
    return np.array([*p[:64], *(p[a:b].sum() for a, b in itertools.pairwise(borders))])


def half_l1(before: Floats, now: Floats) -> float:
    return 0.5 * math.fsum(abs(float(a) - float(b)) for a, b in zip(before, now, strict=True))


class Moved:
    """A model that is changed by hand between readings, with the distances that are to come out."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {"small": nn.Linear(90, 60), "conv": nn.Conv2d(20, 24, 3), "large": nn.Linear(300, 200)}
        )
        self.before: dict[str, Floats] = {}

    def shapes(self) -> dict[str, Floats]:
        return {
            name: summed(shape(layer.get_parameter("weight"), pooled=name == "conv"))
            for name, layer in self.model.items()
        }

    def expected(self) -> dict[str, float]:
        before, self.before = self.before, self.shapes()
        return {name: half_l1(before[name], now) if before else math.nan for name, now in self.before.items()}

    def move(self, k: int) -> None:
        with torch.no_grad():
            for layer in self.model.values():
                weight = layer.get_parameter("weight")
                flat = weight.flatten(1)
                weight.add_(
                    (0.3 * k * (torch.randn(len(flat), 1) @ torch.randn(1, flat.shape[1]))).reshape(weight.shape)
                )


def test_it_is_the_total_variation_from_the_last_reading() -> None:
    """Of one matrix, of a pool of slices, and of groups, at each of several readings; undefined at the first."""
    moved, sink = Moved(), MemorySink()
    with esdmon.watch(moved.model, every=1, budget=None, sinks=[sink], alerts=None) as monitor:
        for k in range(3):
            moved.move(k)
            monitor.step()
            for name, value in moved.expected().items():
                found = sink.reports[-1][name].measures["spectral_distance"]
                assert found == pytest.approx(value, rel=1e-3, nan_ok=True), (k, name)
    assert monitor.errors == ()


def test_a_weight_that_only_grows_has_moved_nowhere() -> None:
    moved = Moved()
    with esdmon.watch(moved.model, every=1, budget=None, sinks=[], alerts=None) as monitor:
        monitor.step()
        with torch.no_grad():
            for parameter in moved.model.parameters():
                parameter.mul_(3)
        monitor.step()
        assert monitor.report is not None
        assert all(layer.measures["spectral_distance"] < 1e-6 for layer in monitor.report)


def test_a_resumed_run_has_the_distance_from_the_reading_before_it_was_stopped() -> None:
    moved = Moved()
    with esdmon.watch(moved.model, every=1, budget=None, sinks=[], alerts=None) as monitor:
        monitor.step()
        state = monitor.state_dict()
    moved.expected()
    moved.move(2)
    with esdmon.watch(moved.model, every=1, budget=None, sinks=[], alerts=None) as resumed:
        resumed.load_state_dict(state)
        resumed.step()
        assert resumed.report is not None
        found = {layer.name: layer.measures["spectral_distance"] for layer in resumed.report}
    assert found == pytest.approx(moved.expected(), rel=1e-3)


def test_matrices_of_another_number_of_singular_values_have_no_distance() -> None:
    assert math.isnan(distance((), (1.0,)))
    assert math.isnan(distance((0.5, 0.5), (1.0,)))
    assert "spectral_distance" not in esdmon.analyze(nn.Linear(64, 64)).layers[0].measures
