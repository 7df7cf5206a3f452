"""FARMS against a transcription with numpy's SVD in float64, and on noise of several shapes."""

import math

import numpy as np
import pytest
import torch

import esdmon


def by_hand(weight: torch.Tensor) -> float:
    """Square windows of the shorter side, as few as cover the longer one and evenly spaced; all singular values pooled,
    and one plus the inverse of the mean logarithm of the upper half, relative to the smallest of that half."""
    pooled: list[float] = []  # without those that are zero up to rounding
    slices = weight.double().flatten(2).permute(2, 0, 1) if weight.ndim == 4 else weight.double()[None]
    for matrix in slices:
        tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T).numpy()
        n, m = tall.shape
        count = -(-n // m)
        for k in range(count):
            start = round(k * (n - m) / (count - 1)) if count > 1 else 0
            pooled += [float(s) ** 2 for s in np.linalg.svd(tall[start : start + m], compute_uv=False)]
    pooled = [x for x in pooled if x > 1e-12 * max(pooled)]
    tail = sorted(pooled)[len(pooled) // 2 :]
    return 1 + len(tail) / math.fsum(math.log(x / tail[0]) for x in tail)


@pytest.mark.parametrize("shape", [(64, 64), (150, 64), (64, 200), (65, 64), (24, 32, 3, 3)])
def test_it_is_the_hill_alpha_of_the_windows(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.linspace(1, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    (layer,) = esdmon.analyze({"layer.weight": weight}, measures=["farms_alpha"])
    assert layer.measures["farms_alpha"] == pytest.approx(by_hand(weight), rel=1e-4)


def test_of_a_low_rank_it_is_that_of_what_is_not_zero() -> None:
    torch.manual_seed(0)
    weight = torch.randn(150, 5) @ torch.randn(5, 64)
    (layer,) = esdmon.analyze({"w": weight}, measures=["farms_alpha"])
    assert layer.measures["farms_alpha"] == pytest.approx(by_hand(weight), rel=1e-4)


def test_noise_has_the_same_whatever_its_shape() -> None:
    """The Hill alpha of the whole matrix goes from 2 to 5 meanwhile; that of structure is below that of noise."""
    torch.manual_seed(0)
    found = [
        esdmon.analyze({"w": torch.randn(n, 128)}, measures=["farms_alpha", "hill_alpha"]).layers[0]
        for n in (128, 300, 1024)
    ]
    for layer in found:
        assert layer.measures["farms_alpha"] == pytest.approx(layer.nulls["farms_alpha"], rel=0.06)
        assert layer.nulls["farms_alpha"] == pytest.approx(2.12, abs=0.01)
    alphas = [layer.measures["hill_alpha"] for layer in found]
    assert alphas[2] > 1.7 * alphas[0]
    spiked = torch.randn(1024, 128) + 3 * torch.randn(1024, 20) @ torch.randn(20, 128) / 20**0.5
    (layer,) = esdmon.analyze({"w": spiked}, measures=["farms_alpha"])
    assert layer.measures["farms_alpha"] < 0.8 * layer.nulls["farms_alpha"]


def test_it_is_read_on_request_only() -> None:
    (layer,) = esdmon.analyze({"w": torch.randn(64, 64)})
    assert "farms_alpha" not in layer.measures
