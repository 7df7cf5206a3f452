"""Nulls are those of noise with the scales of the layer: against draws of such noise."""

import math

import numpy as np
import pytest
import torch

import esdmon
from esdmon import LayerReport

EXACT = ("hill_alpha", "matrix_entropy", "effective_rank", "nuclear_norm", "erg_rank")
"""Sums over the whole spectrum, which hardly scatter."""
NEAR = {"alpha": 0.3, "ks_distance": 0.2, "stable_rank": 0.2, "sigma_min": 0.25, "spectral_norm": 0.25}
"""How far the null may be from the median of the draws, of it."""


def draws(shape: tuple[int, ...], dex: float, count: int = 15) -> list[LayerReport]:
    """Readings of noise of one profile: row and column scales with that standard deviation of log₁₀ rms."""
    rng = np.random.default_rng(3)
    rows, columns = (10 ** (dex * rng.standard_normal(side)) for side in shape[:2])
    scales = (rows[:, None] * columns).reshape(*shape[:2], *(1,) * (len(shape) - 2))
    noise = (torch.tensor(rng.standard_normal(shape) * scales) for _ in range(count))
    return [esdmon.analyze({"a.weight": weight}, precision="exact")["a"] for weight in noise]


@pytest.mark.parametrize(
    ("shape", "dex"), [((256, 128), 0.2), ((128, 64), 0.2), ((96, 384), 0.15), ((64, 64, 3, 3), 0.2)]
)
def test_nulls_are_the_medians_of_draws(shape: tuple[int, ...], dex: float) -> None:
    readings = draws(shape, dex)
    for name, tolerance in (dict.fromkeys(EXACT, 0.02) | NEAR).items():
        median = float(np.median([layer.measures[name] for layer in readings]))
        null = float(np.median([layer.nulls[name] for layer in readings]))
        if name == "sigma_min" and shape[0] == shape[1]:
            continue  # λ⁻ is 0: it scatters by more than itself
        assert null == pytest.approx(median, rel=tolerance), name


def test_noise_of_equal_scales_keeps_its_closed_forms() -> None:
    for layer in draws((256, 128), 0.0, count=3):
        assert layer.nulls["alpha"] == pytest.approx(5.99)  # of the table
        assert layer.nulls["stable_rank"] == pytest.approx(128 / (1 + math.sqrt(0.5)) ** 2)


def test_slices_have_the_variance_that_they_have() -> None:
    """Noise in a kernel whose middle is stronger: the pool has a tail that no slice has."""
    rng = np.random.default_rng(0)
    rows = 10 ** (0.2 * rng.standard_normal(64))
    weight = rng.standard_normal((64, 64, 3, 3)) * rows[:, None, None, None]
    weight[:, :, 1, 1] *= 4
    layer = esdmon.analyze({"a.weight": torch.tensor(weight)})["a"]
    assert layer.measures["hill_alpha"] == pytest.approx(layer.nulls["hill_alpha"], rel=0.03)
    assert layer.measures["stable_rank"] == pytest.approx(layer.nulls["stable_rank"], rel=0.15)
