import math

import numpy as np
import pytest

from esdmon.spectrum import fit_power_law, goodness_of_fit
from tests.matrices import gaussian, pareto, spectrum_of


def test_true_power_laws_are_plausible() -> None:
    """Of ten samples at most two fall below the .1 of the source, and the mean of p is near a half."""
    rng = np.random.default_rng(0)
    p = [goodness_of_fit(x, fit_power_law(x), draws=40) for x in (pareto(rng, 2.5, 300) for _ in range(10))]
    assert sum(value < 0.1 for value in p) <= 2
    assert 0.2 < float(np.mean(p)) < 0.8


def test_noise_is_not() -> None:
    """The best tail of a Marchenko-Pastur bulk is not a power law."""
    lam = spectrum_of(gaussian(np.random.default_rng(1), 1200, 600)).eigenvalues
    assert goodness_of_fit(lam, fit_power_law(lam), draws=40) < 0.1


def test_is_the_same_for_the_same_seed_and_nan_without_a_fit() -> None:
    """Its generator is its own."""
    x = pareto(np.random.default_rng(2), 2.0, 100)
    fit = fit_power_law(x)
    assert goodness_of_fit(x, fit, draws=10, seed=5) == goodness_of_fit(x, fit, draws=10, seed=5)
    assert math.isnan(goodness_of_fit(np.ones(5), fit_power_law(np.ones(5))))
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        goodness_of_fit(x, fit, draws=0)
