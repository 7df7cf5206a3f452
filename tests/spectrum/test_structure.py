"""What stands beside the fits: spike strengths, the ERG condition, traps, localisation, the nulls of the power law."""

import math

import numpy as np
import pytest
import torch

import esdmon
from esdmon.spectrum import Elements, Spectrum, spike_strengths
from esdmon.spectrum import localization as loc
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.nulls import alpha_null, ks_distance_null
from esdmon.spectrum.setol2025 import erg_gap, erg_rank, erg_rank_null
from esdmon.spectrum.traps import trap, trap_spikes
from tests.matrices import gaussian, pareto, read_stack, spectrum_of


def with_elements(matrix: Floats, *, seed: int = 0) -> Spectrum:
    """A spectrum with its elements' statistics and a shuffled copy."""
    shuffled = np.random.default_rng(seed).permutation(matrix.ravel()).reshape(matrix.shape)
    elements = Elements(float(matrix.mean()), float(matrix.var()), float(matrix.min()), float(matrix.max()))
    spectrum, other = spectrum_of(matrix), spectrum_of(shuffled)
    return Spectrum.from_eigenvalues(
        spectrum.by_slice, shape=spectrum.shape, elements=elements, shuffled=other.by_slice
    )


@pytest.mark.parametrize("strength", [1.0, 1.5, 3.0])
def test_strength_of_a_planted_spike_is_recovered(strength: float) -> None:
    """W = noise + S·√N·u vᵀ: S comes back from the eigenvalue within five per cent."""
    rng = np.random.default_rng(0)
    n, m = 1600, 400
    u, v = rng.standard_normal(n), rng.standard_normal(m)
    spike = strength * n**0.5 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    found = spike_strengths(spectrum_of(gaussian(rng, n, m) + spike))
    assert found[-1] == pytest.approx(strength, rel=0.05)
    assert np.all(found >= (m / n) ** 0.25 - 1e-9)
    assert spike_strengths(spectrum_of(gaussian(rng, n, m))).size == 0


def test_erg_rank_is_where_the_volume_is_one() -> None:
    """The product over the tail is at least 1 and would not be with one eigenvalue more; thousands do not underflow."""
    for n, m in ((400, 200), (3000, 3000)):
        lam = np.linspace(0.01, 4, m)
        spectrum = Spectrum.from_eigenvalues(lam, shape=(n, m))
        rank = int(erg_rank(spectrum))
        logs = np.log(lam / lam.mean())[::-1]
        assert logs[:rank].sum() >= 0 > logs[: rank + 1].sum()


def test_erg_rank_of_noise_is_its_null() -> None:
    """At Q = 1 and M = 1000 the quantiles of the law give 732, by a count made apart from this code."""
    spectrum = Spectrum.from_eigenvalues(np.ones(1000), shape=(1000, 1000))
    assert erg_rank_null(spectrum) == pytest.approx(732, abs=1)
    noise = spectrum_of(gaussian(np.random.default_rng(0), 600, 300))
    assert erg_rank(noise) == pytest.approx(erg_rank_null(noise), abs=4)


def test_erg_gap_is_negative_for_a_tail_that_begins_low() -> None:
    """A heavier tail than the critical one begins below the ERG tail, a lighter one above."""
    rng = np.random.default_rng(0)
    heavy, light = (Spectrum.from_eigenvalues(pareto(rng, a, 500), shape=(1000, 500)) for a in (1.5, 4.0))
    assert erg_gap(heavy) < erg_gap(light)
    assert math.isnan(erg_gap(Spectrum.from_eigenvalues(np.ones(20), shape=(40, 20))))


@pytest.mark.parametrize(("share", "trapped"), [(1.5, True), (0.8, False)])
def test_a_mean_is_a_trap_beyond_the_transition(share: float, trapped: bool) -> None:  # noqa: FBT001
    """1.5 × σ/(NM)^¼ makes a spike in the shuffled matrix, 0.8 × does not; the closed form says the same."""
    n, m = 1024, 384
    matrix = gaussian(np.random.default_rng(0), n, m) + share * (n * m) ** -0.25
    spectrum = with_elements(matrix)
    assert (trap(spectrum) > 1) is trapped
    assert (trap_spikes(spectrum) > 0) is trapped


def test_a_huge_element_is_a_trap() -> None:
    """One weight of 1.5 × σ·(NM)^¼."""
    n, m = 1024, 384
    matrix = gaussian(np.random.default_rng(0), n, m)
    matrix[7, 9] = 1.5 * (n * m) ** 0.25
    spectrum = with_elements(matrix)
    assert trap(spectrum) == pytest.approx(1.5, rel=0.01)
    assert trap_spikes(spectrum) == 1


def test_without_elements_or_a_shuffled_copy_a_trap_is_undefined() -> None:
    """NaN, not zero."""
    spectrum = Spectrum.from_eigenvalues(np.ones(20), shape=(40, 20))
    assert math.isnan(trap(spectrum))
    assert math.isnan(trap_spikes(spectrum))


@pytest.mark.parametrize("value", [1.0, 0.1, 1e20])
def test_the_trap_of_equal_elements_is_undefined(value: float) -> None:
    """Their variance is 0, and not what the rounding of a sum leaves of it."""
    assert math.isnan(trap(read_stack(torch.full((1, 64, 48), value))))


@pytest.mark.parametrize("rank", [1, 3])
def test_of_a_low_rank_no_alpha_is_fitted_to_rounding_errors(rank: int) -> None:
    """Neither to those of the matrix nor to those of the equalised one."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(gaussian(rng, 150, rank) @ gaussian(rng, rank, 64)).float()
    spectrum = read_stack(weight[None], "equalised")
    assert spectrum.equalised is not None
    equalised = Spectrum.from_eigenvalues(spectrum.equalised, shape=(150, 64))
    assert spectrum.rank == equalised.rank == rank
    (layer,) = esdmon.analyze({"w": weight}, measures=["alpha", "equalised_alpha", "equalised_spikes"])
    assert math.isnan(layer.measures["equalised_spikes"])
    is_defined = {name: math.isfinite(layer.measures[name]) for name in ("alpha", "equalised_alpha")}
    assert is_defined == dict.fromkeys(is_defined, rank > 1)


def test_gaussian_vectors_read_as_published() -> None:
    """M = 384: localisation 97.7, participation 3.37, entropy 4.11, as in the notebooks of the paper."""
    vectors = np.random.default_rng(0).standard_normal((384, 300))
    assert loc.localization(vectors).mean() == pytest.approx(97.7, rel=0.02)
    assert loc.participation(vectors).mean() == pytest.approx(3.371, rel=0.01)
    assert loc.vector_entropy(vectors).mean() == pytest.approx(4.109, rel=0.01)
    spectrum = Spectrum.from_eigenvalues(np.ones(384), shape=(384, 384))
    assert loc.localization_null(spectrum) == pytest.approx(97.7, rel=0.02)
    assert loc.participation_null(spectrum) == pytest.approx(3.364, abs=0.001)


def test_a_spike_on_few_elements_is_localised() -> None:
    """The mean over spikes is below that over the bulk, whose vectors stay spread."""
    rng = np.random.default_rng(0)
    n, m = 400, 128
    direction = np.zeros(m)
    direction[:4] = 0.5
    matrix = gaussian(rng, n, m) + 3 * n**0.5 * np.outer(np.ones(n) / n**0.5, direction)
    lam, vectors = np.linalg.eigh(matrix.T @ matrix / n)
    spectrum = Spectrum.from_eigenvalues(lam.astype(np.float64), shape=(n, m), vectors=vectors[None])
    for quantity in (loc.localization, loc.participation):
        assert loc.mean_over(quantity, spectrum, spikes=True) < 0.7 * loc.mean_over(quantity, spectrum, spikes=False)


def test_vectors_of_slices_are_distinguished_by_the_one_bulk() -> None:
    """Means over spikes and over the bulk count each vector once, as many as the bulk has spikes and others."""
    rng = np.random.default_rng(0)
    n, m = 200, 64
    slices = [gaussian(rng, n, m) for _ in range(3)]
    slices[1] += 4 * n**0.5 * np.outer(np.ones(n) / n**0.5, np.ones(m) / m**0.5)
    solved = [np.linalg.eigh(piece.T @ piece / n) for piece in slices]
    spectrum = Spectrum.from_eigenvalues(
        np.stack([lam for lam, _ in solved]).astype(np.float64),
        shape=(n, m),
        vectors=np.stack([vectors for _, vectors in solved]).astype(np.float64),
    )
    assert spectrum.bulk is not None
    assert spectrum.bulk.spikes == (0, 1, 0)

    def one_each(vectors: Floats) -> Floats:
        seen.append(vectors.shape[1])
        return np.ones(vectors.shape[1])

    seen: list[int] = []
    assert [loc.mean_over(one_each, spectrum, spikes=spikes) for spikes in (True, False)] == [1, 1]
    assert seen == [0, 1, 0, 64, 63, 64]


@pytest.mark.parametrize(("n", "m"), [(64, 64), (768, 192), (4000, 400), (12_800, 50)])
def test_noise_has_the_alpha_and_the_distance_of_its_null(n: int, m: int) -> None:
    """The median of 25 draws, within 25 and 10 per cent, also of matrices that are much longer than wide."""
    rng = np.random.default_rng(0)
    spectra = [spectrum_of(gaussian(rng, n, m)) for _ in range(25)]
    assert np.median([s.power_law.alpha for s in spectra]) == pytest.approx(alpha_null(spectra[0]), rel=0.25)
    assert np.median([s.power_law.ks_distance for s in spectra]) == pytest.approx(ks_distance_null(spectra[0]), rel=0.1)
