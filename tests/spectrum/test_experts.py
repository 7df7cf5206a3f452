"""The weakest and the strongest of pooled experts, against an SVD of each in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import esdmon

NAMES = ("hill_alpha", "stable_rank", "spectral_norm", "frobenius_norm")


class Mixture(nn.Module):
    """Experts in one parameter, of different strength and rank, as transformers 5 has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_experts = 5
        weight = torch.randn(5, 48, 32) * torch.tensor([1.0, 0.01, 2.0, 1.0, 1.0])[:, None, None]
        weight[3] += 3 * torch.randn(48, 1) @ torch.randn(1, 32)
        self.down_proj = nn.Parameter(weight)


def transcribed(expert: torch.Tensor) -> dict[str, float]:
    sigma = sorted(np.linalg.svd(expert.detach().double().numpy(), compute_uv=False))
    tail = sigma[len(sigma) // 2 :]
    return {
        "hill_alpha": 1 + len(tail) / math.fsum(2 * math.log(s / tail[0]) for s in tail),
        "stable_rank": math.fsum(s * s for s in sigma) / sigma[-1] ** 2,
        "spectral_norm": sigma[-1],
        "frobenius_norm": math.sqrt(math.fsum(s * s for s in sigma)),
    }


def test_they_are_those_of_an_svd_of_each_expert() -> None:
    """Beside the pool, in which the expert that is a hundredth of the others cannot be seen."""
    model = nn.ModuleDict({"experts": Mixture(), "conv": nn.Conv2d(16, 16, 3)})
    report = esdmon.analyze(model)
    measures = report["experts.down_proj"].measures
    experts = [transcribed(expert) for expert in Mixture().down_proj]
    for name in NAMES:
        values = [expert[name] for expert in experts]
        assert measures[f"{name}_min"] == pytest.approx(min(values), rel=1e-4)
        assert measures[f"{name}_max"] == pytest.approx(max(values), rel=1e-4)
    assert measures["spectral_norm_max"] == pytest.approx(measures["spectral_norm"])
    assert measures["frobenius_norm_min"] < 0.02 * measures["frobenius_norm_max"]
    assert "stable_rank_min" not in report["conv"].measures


def test_of_a_single_expert_there_are_none() -> None:
    (layer,) = esdmon.analyze(nn.ModuleDict({"experts": Mixture()}), layers=["*/expert.1"])
    assert layer.slices == 1
    assert "stable_rank_min" not in layer.measures


def test_a_file_has_them_too() -> None:
    model = nn.ModuleDict({"experts": Mixture()})
    from_module, from_state = (esdmon.analyze(each).layers[0] for each in (model, model.state_dict()))
    assert from_state.measures["stable_rank_min"] == from_module.measures["stable_rank_min"]
