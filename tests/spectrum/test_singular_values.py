"""The measures of singular values against numpy's SVD in float64, and against formulas written out one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import esdmon
from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.measures import BUILT_IN_MEASURES
from tests.matrices import gaussian, spectrum_of

BY_NAME = {measure.name: measure for measure in BUILT_IN_MEASURES}
NAMES = ("effective_rank", "nuclear_norm", "sigma_min", "condition_number", "spectral_gap")


def transcribed(weight: Floats) -> dict[str, float]:
    """Each as its source writes it, from the singular values."""
    sigma = sorted((float(x) for x in np.linalg.svd(weight, compute_uv=False)), reverse=True)
    total = math.fsum(sigma)
    entropy = -math.fsum(s / total * math.log(s / total) for s in sigma if s > 0)
    return {
        "effective_rank": math.exp(entropy),
        "nuclear_norm": total,
        "sigma_min": sigma[-1],
        "condition_number": sigma[0] / sigma[-1],
        "spectral_gap": sigma[0] / sigma[1],
    }


@settings(max_examples=15)
@given(st.integers(10, 40), st.integers(10, 40), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e8]))
@example(38, 38, 55738, 1.0)
def test_they_are_those_of_a_float64_svd(n: int, m: int, seed: int, scale: float) -> None:
    """Through the reader, of a float64 weight of any orientation and size.

    Rounding WᵀW moves its smallest eigenvalue by ε·κ² of it, for the condition number κ of W.
    """
    weight = scale * np.random.default_rng(seed).standard_normal((n, m))
    layer = esdmon.analyze({"w": torch.from_numpy(weight)}).layers[0]
    expected = transcribed(weight)
    rounding = max(1e-6, np.finfo(float).eps * expected["condition_number"] ** 2)
    for name in NAMES:
        rel = rounding if name in ("sigma_min", "condition_number") else 1e-6
        assert layer.measures[name] == pytest.approx(expected[name], rel=rel), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_narrower_weights_they_are_those_of_what_is_stored(dtype: torch.dtype) -> None:
    """From a float32 Gram matrix to 3 %, the others to 1e-4."""
    torch.manual_seed(0)
    weight = torch.randn(300, 200).to(dtype)
    layer = esdmon.analyze({"w": weight}).layers[0]
    expected = transcribed(weight.double().numpy())
    for name in NAMES:
        rel = 0.03 if name in ("sigma_min", "condition_number") else 1e-4
        assert layer.measures[name] == pytest.approx(expected[name], rel=rel), name


def test_a_sigma_min_that_float32_does_not_resolve_is_undefined_and_exact_gives_it() -> None:
    left, right = (np.linalg.qr(gaussian(np.random.default_rng(k), 200, 200))[0] for k in (1, 2))
    weight = torch.from_numpy(left @ np.diag(np.r_[np.linspace(1, 2, 199), 1e-3]) @ right).float()
    quick, exact = (esdmon.analyze({"w": weight}, precision=p).layers[0] for p in ("auto", "exact"))
    assert quick.precision == "float32"
    assert math.isnan(quick.measures["sigma_min"])
    assert math.isnan(quick.measures["condition_number"])
    assert exact.measures["sigma_min"] == pytest.approx(1e-3, rel=1e-3)
    assert exact.measures["condition_number"] == pytest.approx(2e3, rel=1e-3)


def test_of_a_lost_rank_the_smallest_is_zero() -> None:
    """And the condition number undefined."""
    torch.manual_seed(0)
    layer = esdmon.analyze({"w": torch.randn(60, 20) @ torch.randn(20, 40)}).layers[0]
    assert layer.measures["sigma_min"] == 0
    assert math.isnan(layer.measures["condition_number"])


@pytest.mark.parametrize("name", ["effective_rank", "nuclear_norm", "sigma_min", "condition_number"])
@pytest.mark.parametrize(("n", "m"), [(900, 150), (384, 192), (40, 40)])
def test_noise_reads_as_its_null(name: str, n: int, m: int) -> None:
    """The smallest singular value scatters where N is near M: the median of several draws is compared."""
    draws = [spectrum_of(gaussian(np.random.default_rng(k), n, m)) for k in range(9 if n > m else 401)]
    null = BY_NAME[name].null
    assert null is not None
    rel = 0.02 if name in ("effective_rank", "nuclear_norm") else 0.06 if n > m else 0.2
    assert np.nanmedian([BY_NAME[name].compute(draw) for draw in draws]) == pytest.approx(null(draws[0]), rel=rel)


def test_the_null_of_sigma_min_is_edelmans_median_of_square_noise() -> None:
    """√x of the survival exp(−x/2 − √x) = ½ is 0.5449: the formula for all shapes is within a tenth of it."""
    null = BY_NAME["sigma_min"].null
    assert null is not None
    square = Spectrum.from_eigenvalues(np.ones(400), shape=(400, 400))
    assert null(square) * 20 == pytest.approx(math.sqrt(1 + 2 * math.log(2)) - 1, rel=0.1)


def test_snr_is_the_energy_of_the_spikes_over_that_of_the_rest() -> None:
    """By hand, from an SVD and the number of spikes; 0 for noise."""
    random = np.random.default_rng(3)
    noise = random.standard_normal((400, 200))
    u, v = np.linalg.qr(random.standard_normal((400, 3)))[0], np.linalg.qr(random.standard_normal((200, 3)))[0]
    weight = noise + u @ np.diag([60.0, 70.0, 80.0]) @ v.T
    energy = np.sort(np.linalg.svd(weight, compute_uv=False) ** 2)
    assert BY_NAME["n_spikes"].compute(spectrum_of(weight)) == 3
    assert BY_NAME["snr"].compute(spectrum_of(weight)) == pytest.approx(energy[-3:].sum() / energy[:-3].sum())
    assert BY_NAME["snr"].compute(spectrum_of(noise)) == 0


def test_of_a_convolution_all_slices_are_pooled() -> None:
    torch.manual_seed(0)
    layer = esdmon.analyze(nn.Sequential(nn.Conv2d(24, 32, 3))).layers[0]
    assert layer.slices == 9
    torch.manual_seed(0)
    kernel = nn.Conv2d(24, 32, 3).weight.detach().double().numpy()
    sigma = np.concatenate([np.linalg.svd(kernel[:, :, i, j], compute_uv=False) for i in range(3) for j in range(3)])
    p = sigma / sigma.sum()
    assert layer.measures["nuclear_norm"] == pytest.approx(sigma.sum(), rel=1e-4)
    assert layer.measures["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)
