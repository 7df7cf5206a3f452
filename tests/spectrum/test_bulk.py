import numpy as np
import pytest

from esdmon.spectrum import fit_bulk
from esdmon.spectrum.johnstone2001 import TRACY_WIDOM_QUANTILES, johnstone_centre, johnstone_scale
from esdmon.spectrum.marchenko1967 import mp_quantile
from tests.matrices import gaussian, pooled, spectrum_of, spike_cut, spiked


@pytest.mark.parametrize(("n", "m", "scale"), [(4096, 384, 0.00827), (384, 192, 0.04332)])
def test_johnstone_scale_is_the_published_one(n: int, m: int, scale: float) -> None:
    """The width of the Tracy-Widom law for the shapes of the paper's MiniAlexNet."""
    assert johnstone_scale(n, m) == pytest.approx(scale, abs=5e-6)


def test_largest_eigenvalue_of_noise_follows_tracy_widom() -> None:
    """Of 400 draws about one in ten, and one in twenty, exceed those quantiles."""
    rng = np.random.default_rng(0)
    n, m = 120, 60
    largest = np.array([spectrum_of(gaussian(rng, n, m)).lambda_max for _ in range(400)])
    standard = (largest - johnstone_centre(n, m)) / johnstone_scale(n, m)
    assert np.mean(standard > TRACY_WIDOM_QUANTILES[0.90]) == pytest.approx(0.10, abs=0.045)
    assert np.mean(standard > TRACY_WIDOM_QUANTILES[0.95]) == pytest.approx(0.05, abs=0.035)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n", "m"), [(1024, 384), (256, 256)])
def test_variance_and_edge_of_noise(n: int, m: int, sigma: float) -> None:
    """σ² is that of the elements, no eigenvalue stands above the cut, and KS·M is that of noise."""
    bulk = fit_bulk(spectrum_of(sigma * gaussian(np.random.default_rng(1), n, m)).by_slice, n)
    assert bulk.sigma2 == pytest.approx(sigma**2, rel=0.03)
    assert bulk.edge == pytest.approx(sigma**2 * (1 + (m / n) ** 0.5) ** 2, rel=0.03)
    assert bulk.n_spikes == 0
    assert bulk.ks <= 6


@pytest.mark.parametrize("count", [1, 5, 20])
def test_planted_spikes_are_counted_and_leave_the_variance(count: int) -> None:
    """Spikes of 1.3 to 4 times the edge are found one by one; σ² does not follow them."""
    spikes = np.linspace(1.3, 4, count)
    bulk = fit_bulk(spectrum_of(spiked(np.random.default_rng(2), 1024, 384, spikes)).by_slice, 1024)
    assert bulk.n_spikes == count
    assert bulk.sigma2 == pytest.approx(1, rel=0.05)


def test_pooled_slices_are_standardised_each_by_its_own_variance() -> None:
    """Nine slices of noise, one of them twice as large, show no spike and a random bulk."""
    rng = np.random.default_rng(3)
    slices = [gaussian(rng, 128, 64) * (2 if i == 4 else 1) for i in range(9)]
    bulk = pooled(slices)
    fitted = fit_bulk(bulk.by_slice, bulk.n)
    assert fitted.n_spikes == 0
    assert fitted.ks <= 6


@pytest.mark.parametrize("slices", [1, 9])
@pytest.mark.parametrize(("n", "m"), [(128, 64), (512, 256), (1024, 1024)])
def test_a_spike_is_above_the_quantile_of_tracy_and_widom(n: int, m: int, slices: int) -> None:
    """Slices share one level of false alarms: in a law's own quantiles, where σ² is 1, the cut is that written out."""
    noise = np.tile(mp_quantile((np.arange(m) + 0.5) / m, n / m), (slices, 1))
    for times, count in ((1 - 1e-6, 0), (1 + 1e-6, 1)):
        noise[0, -1] = spike_cut(n, m, slices) * times
        assert fit_bulk(noise, n).spikes[0] == count


@pytest.mark.parametrize(("shape", "n"), [((20,), 40), ((1, 1), 1), ((1, 1), 40), ((1, 20), 10)])
def test_what_is_no_stack_of_slices_is_refused(shape: tuple[int, ...], n: int) -> None:
    with pytest.raises(ValueError, match=r"by_slice must be \(slices, M\) with N >= M >= 2; got an array of shape"):
        fit_bulk(np.ones(shape), n)


def test_a_slice_without_variance_is_refused() -> None:
    """A bulk cannot be scaled to no width."""
    with pytest.raises(ValueError, match="no bulk: σ² = 0 in slice 0 of 1"):
        fit_bulk(np.zeros((1, 20)), 40)
