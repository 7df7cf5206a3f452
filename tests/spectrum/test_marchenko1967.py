import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.spectrum import mp_cdf, mp_density, mp_edges, mp_quantile
from esdmon.spectrum.marchenko1967 import mp_mean
from tests.matrices import gaussian, spectrum_of

RATIOS = [1.0, 1.25, 2.0, 32 / 3, 300.0]


@pytest.mark.parametrize("q", RATIOS)
def test_cdf_is_the_integral_of_the_density(q: float) -> None:
    """The closed form of the distribution function agrees with the density, summed over a fine grid."""
    low, high = mp_edges(q)
    # λ = low + (high − low)·t² stretches the hard edge of Q = 1, where the density diverges.
    t = (np.arange(200_000) + 0.5) / 200_000
    lam = low + (high - low) * t**2
    mass = mp_density(lam, q) * 2 * (high - low) * t / t.size
    assert np.sum(mass) == pytest.approx(1, abs=1e-5)
    assert np.max(np.abs(np.cumsum(mass) - mp_cdf(lam, q))) < 1e-5


@pytest.mark.parametrize("q", RATIOS)
def test_moments_are_those_of_the_law(q: float) -> None:
    """E λ = 1 and E λ² = 1 + 1/Q."""
    assert mp_mean(lambda lam: lam, q) == pytest.approx(1)
    assert mp_mean(np.square, q) == pytest.approx(1 + 1 / q)


@given(st.floats(1, 100), st.floats(0.001, 0.999))
def test_quantile_inverts_the_cdf(q: float, p: float) -> None:
    """cdf(quantile(p)) = p, inside the edges."""
    lam = mp_quantile(np.array([p]), q)
    low, high = mp_edges(q)
    assert low <= lam[0] <= high
    assert mp_cdf(lam, q)[0] == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(
    ("q", "median"), [(1, 0.6528), (1.5, 0.7724), (2, 0.8305), (4, 0.9160), (32 / 3, 0.9687)], ids=lambda v: f"{v:.2f}"
)
def test_medians_are_the_published_ones(q: float, median: float) -> None:
    """At Q = 1 the median is that of Gavish & Donoho (2014); the others were computed apart from this code."""
    assert mp_quantile(np.array([0.5]), q)[0] == pytest.approx(median, abs=5e-5)


def test_noise_follows_the_law() -> None:
    """The spectrum of a large random matrix lies on the quantiles."""
    lam = spectrum_of(gaussian(np.random.default_rng(0), 1200, 400)).eigenvalues
    assert np.max(np.abs(mp_cdf(lam, 3.0) - (np.arange(400) + 0.5) / 400)) < 0.01


@pytest.mark.parametrize("q", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_q_below_one_is_refused(q: float) -> None:
    """Q = N/M with N >= M."""
    with pytest.raises(ValueError, match="must be finite and at least 1"):
        mp_edges(q)
