"""Weights at the limits of floating point: a status and a short reason, or the numbers of the same weight scaled."""

import numpy as np
import pytest
import torch

import esdmon


@pytest.mark.parametrize("factor", [1e-140, 1e-42, 1e38, 1e145])
def test_a_weight_of_float64_is_read_at_any_scale_whose_square_is_a_number(factor: float) -> None:
    """alpha does not depend on it."""
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, plain = (esdmon.analyze({"w.weight": each})["w"] for each in (weight * factor, weight))
    assert small.measures["alpha"] == pytest.approx(plain.measures["alpha"], rel=1e-9)


@pytest.mark.parametrize(("factor", "status"), [(1e-200, "degenerate"), (1e200, "nonfinite")])
def test_a_weight_whose_squares_are_outside_of_float64_has_a_reason(factor: float, status: str) -> None:
    """It is not called zero, and no solver is given it."""
    layer = esdmon.analyze({"w.weight": torch.ones(20, 20, dtype=torch.float64) * factor})["w"]
    assert layer.status == status
    assert layer.reason.endswith("whose square is outside of float64")


@pytest.mark.parametrize("precision", ["auto", "exact"])
def test_the_rank_of_an_ill_conditioned_weight_is_that_of_its_singular_values(precision: str) -> None:
    """Of condition 1e12, where WᵀW loses half of them."""
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((96, 96)))[0] for _ in range(2))
    weight = torch.from_numpy(left * np.logspace(0, -12, 96) @ right)
    layer = esdmon.analyze({"w.weight": weight}, precision=precision)["w"]
    assert layer.measures["hard_rank"] == 96
    assert layer.phase is not esdmon.Phase.RANK_COLLAPSE


@pytest.mark.parametrize("repeats", [4, 8, 16])
def test_a_repeated_block_has_an_alpha_of_its_distinct_eigenvalues(repeats: int) -> None:
    """A tail of equal eigenvalues, which differ by rounding only, once gave 1e8; both precisions agree."""
    for seed in range(3):
        block = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
        weights = {"w.weight": torch.kron(torch.eye(repeats), block)}
        alphas = [esdmon.analyze(weights, precision=each)["w"].measures["alpha"] for each in ("auto", "exact")]
        assert max(alphas) < 100
        assert alphas[0] == pytest.approx(alphas[1], rel=0.01)
