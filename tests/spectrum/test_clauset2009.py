import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.spectrum import PowerLawFit, fit_power_law
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.clauset2009 import NEAR_BEST
from tests.matrices import gaussian, pareto, spectrum_of
from tests.strategies import seeds


def naive_fits(x: Floats) -> list[tuple[float, float, float, int]]:
    """(D, alpha, xmin, n_tail) of each candidate: Clauset, Shalizi, Newman (2009), eq. 3.1 and §3.3, word for word."""
    fits = []
    for xmin in np.unique(x)[:-1]:
        tail = np.sort(x[x >= xmin])
        n = tail.size
        alpha = 1 + n / np.sum(np.log(tail / xmin))
        below = np.array([np.sum(tail < value) for value in tail]) / n
        distance = np.max(np.abs(1 - (tail / xmin) ** (1 - alpha) - below))
        fits.append((float(distance), float(alpha), float(xmin), n))
    return fits


def assert_equals_naive(fit: PowerLawFit, x: Floats) -> None:
    fits = naive_fits(x)
    distance, alpha, xmin, n_tail = min(fits, key=lambda candidate: candidate[0])
    assert fit.ks_distance == pytest.approx(distance, rel=1e-10)
    assert fit.alpha == pytest.approx(alpha, rel=1e-10)
    assert (fit.xmin, fit.n_tail) == (xmin, n_tail)
    near = [a for d, a, _, _ in fits if d <= NEAR_BEST * distance]
    assert (fit.alpha_low, fit.alpha_high) == pytest.approx((min(near), max(near)))


SAMPLES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "pareto": lambda rng, n: pareto(rng, 2.5, n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
    "noise": lambda rng, n: spectrum_of(gaussian(rng, 2 * n, n)).eigenvalues,
    "student": lambda rng, n: rng.standard_t(3, n) ** 2,
    "rounded": lambda rng, n: np.round(pareto(rng, 2.0, n), 1),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("n", [12, 60, 300])
def test_equals_the_naive_search(kind: str, n: int) -> None:
    """The pruned search finds what looking at every candidate finds."""
    x = SAMPLES[kind](np.random.default_rng(n), n)
    assert_equals_naive(fit_power_law(x), x)


@given(seeds, st.integers(2, 80), st.floats(1.2, 6))
def test_equals_the_naive_search_on_any_pareto(seed: int, n: int, alpha: float) -> None:
    """The same for any size and exponent."""
    x = pareto(np.random.default_rng(seed), alpha, n)
    assert_equals_naive(fit_power_law(x), x)


@pytest.mark.parametrize("kind", ["pareto", "noise", "student"])
def test_equals_the_powerlaw_package(kind: str) -> None:
    """Alpha, xmin and D are those of `powerlaw`, once its default range of alpha, [0, 3], is opened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        powerlaw = pytest.importorskip("powerlaw")
        x = SAMPLES[kind](np.random.default_rng(5), 200)
        with redirect_stdout(io.StringIO()):
            theirs = powerlaw.Fit(x, parameter_ranges={"alpha": [1.0001, None]}, verbose=0)
            expected = (theirs.power_law.alpha, theirs.xmin, theirs.power_law.D)
    ours = fit_power_law(x)
    assert (ours.alpha, ours.xmin, ours.ks_distance) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 3.5])
def test_recovers_a_known_exponent(alpha: float) -> None:
    """On 3000 draws of a Pareto law alpha is right within four of its standard errors, nine times in ten."""
    rng = np.random.default_rng(0)
    fits = [fit_power_law(pareto(rng, alpha, 3000)) for _ in range(20)]
    hits = [abs(fit.alpha - alpha) < 4 * fit.alpha_stderr for fit in fits]
    assert np.mean(hits) >= 0.9


def test_standard_error_is_that_of_the_source() -> None:
    """(alpha − 1)/√n, eq. 3.2."""
    fit = fit_power_law(pareto(np.random.default_rng(1), 2.5, 500))
    assert fit.alpha_stderr == pytest.approx((fit.alpha - 1) / fit.n_tail**0.5)


@given(seeds, st.floats(1e-12, 1e12))
def test_units_do_not_matter(seed: int, scale: float) -> None:
    """Scaling the eigenvalues scales xmin and nothing else."""
    x = pareto(np.random.default_rng(seed), 2.2, 100)
    fit, scaled = fit_power_law(x), fit_power_law(x * scale)
    assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-6)
    assert scaled.xmin == pytest.approx(fit.xmin * scale)
    assert scaled.n_tail == fit.n_tail


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ([], "0 distinct positive eigenvalues"),
        ([0.0, 0.0], "0 distinct positive eigenvalues"),
        ([3.0], "1 distinct positive eigenvalues"),
        ([2.0] * 50, "1 distinct positive eigenvalues"),
        ([np.nan, np.inf, -1.0], "0 distinct positive eigenvalues"),
        (list(1 + np.arange(20) * 1e-8), "all 20 eigenvalues are equal"),
    ],
    ids=["empty", "zeros", "one", "ties", "not finite", "nearly equal"],
)
def test_degenerate_input_has_a_reason(x: list[float], reason: str) -> None:
    """Where there is no tail there is no number, and a reason for it."""
    fit = fit_power_law(np.array(x))
    assert fit.reason.startswith(reason)
    assert np.isnan(fit.alpha)
    assert fit.n_tail == 0
