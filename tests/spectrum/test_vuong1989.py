import io
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout

import numpy as np
import pytest

from esdmon.spectrum import (
    Comparison,
    PowerLawFit,
    fit_power_law,
    power_law_against_exponential,
    power_law_against_lognormal,
    power_law_against_truncated,
)
from esdmon.spectrum.arrays import Floats
from tests.matrices import pareto

AGAINST: dict[str, Callable[[Floats, PowerLawFit], Comparison]] = {
    "exponential": power_law_against_exponential,
    "lognormal": power_law_against_lognormal,
    "truncated_power_law": power_law_against_truncated,
}


@pytest.mark.parametrize("other", AGAINST)
def test_equals_the_powerlaw_package(other: str) -> None:
    """On the upper half of lognormal data, where every optimum is an inner one: R and p to two digits."""
    x = np.sort(np.random.default_rng(0).lognormal(size=1200))
    tail = x[600:]
    fit = PowerLawFit(alpha=1 + 600 / float(np.log(tail / tail[0]).sum()), xmin=float(tail[0]), n_tail=600)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        powerlaw = pytest.importorskip("powerlaw")
        theirs = powerlaw.Fit(x, xmin=fit.xmin, parameter_ranges={"alpha": [1.0001, None]}, verbose=0)
        ratio, p = theirs.distribution_compare("power_law", other, normalized_ratio=True)
    ours = AGAINST[other](x, fit)
    assert (ours.ratio, ours.p) == pytest.approx((ratio, p), abs=0.01)


@pytest.mark.parametrize(
    ("other", "draw"),
    [
        ("exponential", lambda rng: 1 + rng.exponential(size=2000)),
        ("lognormal", lambda rng: rng.lognormal(sigma=0.5, size=2000)),
        ("truncated_power_law", lambda rng: 1 + rng.gamma(1.0, 2.0, size=2000)),
    ],
)
def test_prefers_the_true_law(other: str, draw: Callable[[np.random.Generator], Floats]) -> None:
    """Over the whole of such data the power law loses; over Pareto data it is not refused."""
    rng = np.random.default_rng(3)
    x = np.sort(draw(rng))
    whole = PowerLawFit(alpha=1 + x.size / float(np.log(x / x[0]).sum()), xmin=float(x[0]), n_tail=x.size)
    lost = AGAINST[other](x, whole)
    assert lost.ratio < 0
    assert lost.p < 0.01
    true = pareto(rng, 2.5, 2000)
    held = AGAINST[other](true, fit_power_law(true))
    assert held.ratio > -1.7 or held.p > 0.1


@pytest.mark.parametrize("other", AGAINST)
def test_no_tail_is_no_comparison(other: str) -> None:
    """NaN, and nothing raised."""
    for x in (np.array([1.0, 2.0]), np.ones(5), np.empty(0)):
        assert math.isnan(AGAINST[other](x, fit_power_law(x)).ratio)
