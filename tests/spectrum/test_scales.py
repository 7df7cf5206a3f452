"""The estimated scales of rows and columns, and the fit of a bulk with them."""

import math

import numpy as np
import pytest
import torch

from esdmon.spectrum import Phase, Spectrum, classify
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.scales import Scales
from esdmon.weights.device.margins import scales_of
from esdmon.weights.device.sums import sum_up
from tests.benchmarks.ensembles import dead_rows, scaled, scaled_noise, scaled_spikes
from tests.matrices import pareto, read_stack


def read(matrix: Floats) -> Spectrum:
    """The spectrum of a matrix, or of a stack of them."""
    stack = torch.from_numpy(np.atleast_3d(matrix.T).T if matrix.ndim == 2 else matrix)
    return read_stack(stack)


def test_noise_of_equal_scales_has_about_equal_ones() -> None:
    rng = np.random.default_rng(0)
    stacks = [torch.from_numpy(rng.standard_normal((1, 256, 128))) for _ in range(10)]
    assert max(scales_of(stack, sum_up(stack).margins).spread for stack in stacks) < 0.02
    assert read(stacks[0].numpy()).scales is None  # none are needed


@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_spread_is_that_of_the_scales(law: str) -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((512, 256)) if law == "normal" else rng.laplace(size=(512, 256))
    assert _scales(read(scaled(rng, noise, 0.1))).spread == pytest.approx(0.1, rel=0.15)


def test_spikes_and_large_rows_are_taken_off_the_profile() -> None:
    rng = np.random.default_rng(2)
    scales = _scales(read(scaled(rng, rng.standard_normal((256, 128)), 0.1)))
    assert scales.profile(spikes=1.0).is_flat
    rows = scales.rows.copy()
    rows[0, 0] *= 1e4
    wide = Scales(rows, scales.columns, scales.kurtosis)
    assert wide.profile().rows.max() > 10 * wide.profile(clipped=True).rows.max()


@pytest.mark.parametrize(("n", "m"), [(32, 32), (64, 64), (256, 128), (384, 192)])
def test_noise_with_scales_is_random_like(n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])
    readings = [classify(scaled_noise(rng, n, m)) for _ in range(20)]
    assert sum(reading.phase is Phase.RANDOM_LIKE for reading in readings) >= 19
    assert not any(reading.alpha_is_meaningful for reading in readings)


def masked(rng: np.random.Generator, n: int, m: int, share: float) -> Floats:
    """Noise of which only a share, at random places, is not zero."""
    matrix: Floats = rng.standard_normal((n, m)) * (rng.random((n, m)) < share)
    return matrix


@pytest.mark.parametrize(("n", "m"), [(512, 512), (1024, 256), (1024, 1024)])
def test_noise_under_a_random_mask_is_random_like(n: int, m: int) -> None:
    """As layers of sparse training begin: its scales scatter, and so does its spectrum."""
    rng = np.random.default_rng([n, m])
    readings = [classify(read(masked(rng, n, m, 0.1))) for _ in range(4)]
    assert [reading.phase for reading in readings] == [Phase.RANDOM_LIKE] * 4


def test_a_slice_of_zeros_beside_masked_ones_disturbs_nothing() -> None:
    rng = np.random.default_rng(6)
    stack = torch.from_numpy(np.stack([masked(rng, 256, 128, 0.2), np.zeros((256, 128))]))
    scales = scales_of(stack, sum_up(stack).margins)
    assert scales.filled == pytest.approx([0.2, 0], abs=0.01)
    assert np.ptp(scales.profile().rows[1]) == 0
    assert np.isfinite(scales.profile().rows).all()


def test_spikes_under_a_random_mask_are_found() -> None:
    """Two to four times as strong as the first that shows, in the elements that the mask leaves."""
    phases = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        left, right = (np.linalg.qr(rng.standard_normal((512, 3)))[0] for _ in range(2))
        mask = rng.random((512, 512)) < 0.1
        spikes = left * (np.array([2.0, 3.0, 4.0]) * (512 / 0.1) ** 0.5) @ right.T
        phases.append(classify(read((rng.standard_normal((512, 512)) + spikes) * mask)).phase)
    assert phases.count(Phase.BULK_SPIKES) >= 3


def test_the_profile_of_masked_noise_has_the_second_moment_of_its_spectrum() -> None:
    """E λ²/(E λ)² is E b² + M/N·E a², to a third of the 3/(p·N) that a mask of share p adds to it."""
    rng = np.random.default_rng(4)
    differences = []
    for _ in range(6):
        spectrum = read(masked(rng, 800, 400, 0.1))
        profile, eigenvalues = _scales(spectrum).profile(), spectrum.by_slice[0]
        law = np.mean(profile.columns**2) + 400 / 800 * np.mean(profile.rows**2)
        differences.append(law - np.mean(eigenvalues**2) / np.mean(eigenvalues) ** 2)
    assert np.mean(differences) == pytest.approx(0, abs=30 / 800 / 3)


def test_spikes_under_scales_are_found() -> None:
    rng = np.random.default_rng(3)
    phases = [classify(scaled_spikes(rng, 384, 192)).phase for _ in range(12)]
    assert phases.count(Phase.BULK_SPIKES) >= 11


def test_slices_with_scales_of_their_own_are_random_like() -> None:
    rng = np.random.default_rng(4)
    stack = np.stack([scaled(rng, rng.standard_normal((96, 64)), 0.02 + 0.03 * i) for i in range(9)])
    reading = classify(read(stack))
    assert reading.phase is Phase.RANDOM_LIKE
    assert "Their scales differ by" in reading.explanation


def test_one_huge_row_is_no_structure() -> None:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((256, 128))
    matrix[3] *= 20
    assert classify(read(matrix)).phase is Phase.RANDOM_LIKE


def test_dead_units_are_counted_for_each_side_and_said() -> None:
    rng = np.random.default_rng(6)
    matrix = rng.standard_normal((200, 100))
    matrix[:30] *= 1e-9
    matrix[:, 7] = 0
    spectrum = read(matrix)
    elements = spectrum.elements
    assert elements is not None
    assert (elements.zero_rows, elements.zero_columns, elements.rows, elements.columns) == (30, 1, 170, 99)
    assert spectrum.shape == (170, 99)
    reading = classify(spectrum)
    assert reading.phase is Phase.RANDOM_LIKE
    assert "30 of 200 rows and 1 of 100 columns are dead and left out." in reading.explanation


def test_a_layer_with_most_outputs_dead_has_no_phase() -> None:
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((2048, 256))
    matrix[:, :180] = 0
    reading = classify(read(matrix))
    assert reading.phase is Phase.UNCLASSIFIED
    assert "180 of 256 columns are dead: too little" in reading.explanation
    assert classify(dead_rows(rng, 512, 256)).phase is Phase.RANDOM_LIKE


def test_kernel_positions_under_a_mask_are_left_out() -> None:
    """As in a PixelCNN: those below and to the right of the middle are zero."""
    rng = np.random.default_rng(8)
    stack = rng.standard_normal((25, 96, 64))
    stack[12:] = 0
    spectrum = read_stack(torch.from_numpy(stack))
    assert (spectrum.slices, spectrum.rank) == (12, 12 * 64)
    reading = classify(spectrum)
    assert reading.phase is Phase.RANDOM_LIKE
    assert reading.explanation.endswith("13 of 25 slices are dead and left out.")
    assert spectrum.elements is not None
    assert spectrum.elements.variance == pytest.approx(1, abs=0.02)


def test_a_kernel_that_begins_as_a_delta_has_not_collapsed() -> None:
    kernel = torch.nn.init.dirac_(torch.empty(64, 64, 3, 3))
    reading = classify(read_stack(kernel.permute(2, 3, 0, 1).flatten(0, 1)))
    assert reading.phase is Phase.UNCLASSIFIED
    assert "orthogonal or rescaled weights look like this" in reading.explanation


def test_kernel_positions_of_which_most_have_decayed_have_collapsed() -> None:
    stack = np.random.default_rng(9).standard_normal((9, 96, 64))
    stack[:5] *= 1e-12
    assert classify(read_stack(torch.from_numpy(stack))).phase is Phase.RANK_COLLAPSE


def test_a_layer_of_which_most_has_decayed_has_collapsed() -> None:
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((2048, 256))
    matrix[:, :180] *= 1e-12
    assert classify(read(matrix)).phase is Phase.RANK_COLLAPSE


@pytest.mark.parametrize(("shape", "dex"), [((512, 512), 0.6), ((4096, 1024), 0.3)])
def test_noise_of_wide_scales_has_not_collapsed(shape: tuple[int, int], dex: float) -> None:
    """The first has 74 eigenvalues that are zero in float32; the second needs a law that is right to 1/M."""
    rng = np.random.default_rng(5)
    reading = classify(read(scaled(rng, rng.standard_normal(shape), dex).astype(np.float32)))
    assert reading.phase is Phase.RANDOM_LIKE


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_noise_of_rows_and_columns_of_wide_scales_has_not_collapsed(seed: int) -> None:
    """At .9 dex of both more than 5 % of the eigenvalues are zero in float32, and so are those of the law.

    With the law of equal scales σ² is below the zero tolerance in two of these draws, so there is no such fit.
    """
    rng = np.random.default_rng(seed)
    spectrum = read(scaled(rng, rng.standard_normal((256, 128)), 0.9).astype(np.float32))
    assert spectrum.rank < 0.95 * spectrum.m
    assert classify(spectrum).phase is Phase.RANDOM_LIKE


def test_zeros_beyond_those_of_noise_of_the_same_scales_are_a_collapse() -> None:
    rng = np.random.default_rng(0)
    matrix = scaled(rng, rng.standard_normal((256, 40)) @ rng.standard_normal((40, 128)), 0.9)
    assert classify(read(matrix.astype(np.float32))).phase is Phase.RANK_COLLAPSE


def test_an_orthogonal_matrix_with_scaled_rows_has_the_tail_of_its_scales() -> None:
    """No law of noise explains its bulk, but its tail is that of its scales."""
    rng = np.random.default_rng(14)
    matrix = np.linalg.qr(rng.standard_normal((128, 128)))[0] * 10 ** (0.3 * rng.standard_normal((128, 1)))
    spectrum = read(matrix.astype(np.float32))
    assert spectrum.power_law.alpha < 2
    assert spectrum.scaled_noise is None
    reading = classify(spectrum)
    assert reading.phase is Phase.UNCLASSIFIED
    assert not reading.alpha_is_meaningful
    assert reading.explanation.endswith("Noise with the same row and column scales has such a tail too.")


def test_a_spectrum_without_a_bulk_has_no_edge_and_no_spikes() -> None:
    rng = np.random.default_rng(8)
    two_halves = np.concatenate((rng.uniform(1, 2, 40), rng.uniform(1e4, 2e4, 40)))
    spectrum = Spectrum.from_eigenvalues(two_halves, shape=(80, 80))
    reading = classify(spectrum)
    assert reading.phase is Phase.UNCLASSIFIED
    assert reading.confidence == 0
    assert reading.explanation.startswith("No bulk of noise was found: 50% of the eigenvalues are above the best fit")
    assert not reading.alpha_is_meaningful
    assert spectrum.noise_bulk is None


def test_a_spike_that_elements_make_says_so() -> None:
    rng = np.random.default_rng(9)
    matrix = rng.standard_normal((256, 128)) + 0.5
    reading = classify(read(matrix))
    assert reading.phase is Phase.BULK_SPIKES
    assert "Single elements or the mean alone make a spike (trap 6." in reading.explanation


def _scales(spectrum: Spectrum) -> Scales:
    assert spectrum.scales is not None
    return spectrum.scales


@pytest.mark.parametrize("shape", [(256, 128), (512, 512)])
def test_noise_whose_rows_differ_by_factors_of_five_is_random_like(shape: tuple[int, int]) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = 10 ** (0.7 * rng.standard_normal((shape[0], 1)))
        reading = classify(read((rows * rng.standard_normal(shape)).astype(np.float32)))
        assert reading.phase is Phase.RANDOM_LIKE
        assert not reading.alpha_is_meaningful


@pytest.mark.parametrize("kind", ["rows of 1.3 dex", "5 % of the elements", "blocks of 4 scales"])
def test_noise_whose_law_is_known_up_to_what_no_picture_shows_is_random_like(kind: str) -> None:
    """At 512 × 512, with a KS distance of .01 to .05 from the law of the measured scales: KS·M is above 6."""
    rng = np.random.default_rng(0)
    noise, rows, chances = rng.standard_normal((512, 512)), rng.standard_normal((512, 1)), rng.random((512, 512))
    made = {
        "rows of 1.3 dex": noise * 10 ** (1.3 * rows),
        "5 % of the elements": noise * (chances < 0.05),
        "blocks of 4 scales": noise * np.kron(10 ** (0.2 * rng.standard_normal((2, 2))), np.ones((256, 256))),
    }
    reading = classify(read(made[kind]))
    assert reading.phase is Phase.RANDOM_LIKE
    assert "the bulk is nearly that of noise" in reading.explanation


def test_noise_of_very_unequal_rows_has_no_heavy_tail() -> None:
    """At 1.3 dex."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = 10 ** (1.3 * rng.standard_normal((256, 1)))
        reading = classify(read((rows * rng.standard_normal((256, 128))).astype(np.float32)))
        assert reading.phase is not Phase.HEAVY_TAILED
        assert not reading.alpha_is_meaningful
        assert not reading.over_regularized


@pytest.mark.parametrize("seed", [4, 18, 35])
def test_a_tail_that_noise_of_the_same_scales_has_means_nothing(seed: int) -> None:
    """Columns that differ by .6 dex, and structure of a third of the rank, which no law of noise explains."""
    rng, m = np.random.default_rng(seed), 64
    noise = rng.standard_normal((256, m))
    structure = rng.standard_normal((256, 21)) * np.arange(1, 22) ** -0.7 @ rng.standard_normal((21, m))
    columns = 10 ** (0.6 * rng.standard_normal(m))
    reading = classify(read(((noise + 3 * structure) * columns).astype(np.float32)))
    assert reading.explanation.endswith("Noise with the same row and column scales has such a tail too.")
    assert reading.phase is not Phase.HEAVY_TAILED
    assert not reading.alpha_is_meaningful
    assert not reading.over_regularized


@pytest.mark.parametrize("shape", [(1, 256, 256), (1, 128, 256), (9, 64, 64)])
@pytest.mark.parametrize("exponent", [0.0, 3.0])
def test_a_transpose_has_the_same_scales_and_the_same_phase(shape: tuple[int, int, int], exponent: float) -> None:
    """Whichever side differs more: rows by .5 dex, columns by .2, one row by a factor of 30; and heavy elements."""
    for seed in range(4):
        rng = np.random.default_rng([*shape, seed])
        elements = rng.standard_normal(shape) * (
            pareto(rng, exponent, math.prod(shape)).reshape(shape) if exponent else 1
        )
        rows, columns = (10 ** (dex * rng.standard_normal(side)) for dex, side in ((0.5, shape[1]), (0.2, shape[2])))
        rows[3] *= 30
        stack = elements * rows[:, None] * columns
        one, other = read(stack), read(stack.swapaxes(1, 2).copy())
        a, b = _scales(one), _scales(other)
        sides = ((a.rows, b.rows), (a.columns, b.columns))
        if shape[1] == shape[2]:
            sides = ((a.rows, b.columns), (a.columns, b.rows))
        for side, same in sides:
            np.testing.assert_allclose(side, same, rtol=1e-9)
        np.testing.assert_allclose(a.kurtosis, b.kurtosis, rtol=1e-9)
        assert classify(one).phase is classify(other).phase
