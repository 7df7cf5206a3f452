"""The scales of what is left of a weight without its strongest directions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from esdmon.spectrum import Phase, classify
from esdmon.spectrum.rest import scales_of_rest
from esdmon.weights.device.rest import rest_of
from tests.benchmarks.noise import unevenly_spiked
from tests.matrices import read_stack


def test_the_strongest_directions_are_removed() -> None:
    """As many in each slice as it has spikes, of tall and of wide matrices."""
    rng = np.random.default_rng(0)
    for shape in ((2, 60, 40), (2, 40, 60)):
        left, singular, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        singular[0, :5] *= 10
        singular[1, :2] *= 10
        stack = left * singular[:, None] @ right
        rest = rest_of(torch.from_numpy(stack), (5, 2)).numpy()
        singular[0, :5] = singular[1, :2] = 0
        np.testing.assert_allclose(rest, left * singular[:, None] @ right, atol=1e-4)


def test_the_scales_of_the_rest_are_those_of_the_noise() -> None:
    rng = np.random.default_rng(1)
    rows = 10 ** (0.3 * rng.standard_normal((300, 1)))
    spikes = np.linalg.qr(rng.standard_normal((300, 3)))[0] @ np.linalg.qr(rng.standard_normal((100, 3)))[0].T
    noise = (rows * rng.standard_normal((300, 100)))[None]
    scales = scales_of_rest(noise + 500 * spikes, (3,))
    assert np.corrcoef(np.log(scales.rows[0]), np.log(rows[:, 0]))[0, 1] > 0.98


@pytest.mark.parametrize("shape", [(256, 128), (128, 256)])
def test_spikes_that_are_alike_in_all_rows_hide_no_unequal_scales(shape: tuple[int, int]) -> None:
    """Noise whose rows differ by .3 dex, and five spikes: with the rows' own mean squares it is over-regularised."""
    for seed in (1, 2):
        matrix = unevenly_spiked(np.random.default_rng(seed), *shape, dex=0.3).astype(np.float32)
        for stack in (torch.from_numpy(matrix)[None], torch.from_numpy(matrix)[None].bfloat16()):
            spectrum = read_stack(stack)
            assert classify(replace(spectrum, scales_of_rest=None)).over_regularized
            reading = classify(spectrum)
            assert reading.phase is Phase.BULK_SPIKES
            assert not reading.over_regularized


@pytest.mark.parametrize(("shape", "seed"), [((256, 128), 5), ((150, 150), 14), ((256, 256), 12)])
def test_a_transpose_has_the_same_verdict_without_its_spikes(shape: tuple[int, int], seed: int) -> None:
    """The strongest directions are approximate, and so are the scales without them."""
    matrix = unevenly_spiked(np.random.default_rng([seed, *shape]), *shape, dex=0.4).astype(np.float32)
    stack = torch.from_numpy(matrix)[None]
    spectra = [read_stack(each) for each in (stack, stack.mT)]
    assert all(spectrum.scales_of_rest is not None for spectrum in spectra)
    one, other = (classify(spectrum) for spectrum in spectra)
    assert (one.phase, one.over_regularized) == (other.phase, other.over_regularized)
