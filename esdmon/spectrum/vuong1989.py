"""Compare a power law with other tails by likelihood ratios.

Legend: x are the n values of the tail in units of xmin, x >= 1; d = ln p_powerlaw(x) − ln p_other(x). Each function
takes the eigenvalues, 1-D and in any order, and their fit; eigenvalues below xmin are left out.

Reference: Q. H. Vuong, "Likelihood ratio tests for model selection and non-nested hypotheses", Econometrica 57 (1989)
307; applied to tails by Clauset, Shalizi, Newman (2009), §5 and appendix C.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.clauset2009 import PowerLawFit


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison of the power law with another law, each at its maximum likelihood."""

    ratio: float
    """R = Σd/(√n·sd(d)): above 0 the power law is more likely. NaN without a fit, and for a tail of fewer than 3 values
    or of equal values."""
    p: float
    """Two-sided p-value of R if both laws were equally good; for the truncated power law, if nothing was truncated."""


_NONE = Comparison(math.nan, math.nan)
_GRID = np.linspace(0, 1, 401)


@explain_wrong_calls
def power_law_against_exponential(eigenvalues: Floats, fit: PowerLawFit) -> Comparison:
    """Compare with the exponential r·exp(−r(x − 1)), r = 1/(mean(x) − 1)."""
    x = _tail(eigenvalues, fit)
    if x is None:
        return _NONE
    rate = 1 / (x.mean() - 1)
    return _vuong(_log_power_law(x, fit), np.log(rate) - rate * (x - 1))


@explain_wrong_calls
def power_law_against_lognormal(eigenvalues: Floats, fit: PowerLawFit) -> Comparison:
    """Compare with a lognormal: a fitted normal law of u = ln x, cut off below u = 0. Needs scipy's optimiser."""
    from scipy.special import log_ndtr  # noqa: PLC0415 -- on request only: it would double the time of the import

    x = _tail(eigenvalues, fit)
    if x is None:
        return _NONE
    u = np.log(x)

    def log_density(parameters: Floats) -> Floats:
        mean, width = parameters[0], np.exp(parameters[1])
        normal = -(((u - mean) / width) ** 2) / 2 - np.log(width) - math.log(2 * math.pi) / 2
        # In x, not in ln x: dx = x du.
        return normal - log_ndtr(mean / width) - u

    best = _most_likely(log_density, [(u.mean(), np.log(u.std() + 1e-12)), (-u.mean(), np.log(2 * u.mean()))])
    return _vuong(_log_power_law(x, fit), best)


@explain_wrong_calls
def power_law_against_truncated(eigenvalues: Floats, fit: PowerLawFit) -> Comparison:
    """Compare with x^(−α)·exp(−z·x), α and z > 0 fitted; the power law is the special case z = 0, so R <= 0."""
    x = _tail(eigenvalues, fit)
    if x is None:
        return _NONE

    def log_density(parameters: Floats) -> Floats:
        alpha, z = parameters[0], np.exp(parameters[1])
        return -alpha * np.log(x) - z * x - _log_normaliser(alpha, z)

    largest = np.log(x.max())
    truncated = _most_likely(log_density, [(fit.alpha, -largest), (fit.alpha, -largest - 5)])
    power_law = _log_power_law(x, fit)
    difference = min(0.0, float((power_law - truncated).sum()))
    # Nested: twice the difference follows χ² with one degree of freedom.
    return Comparison(_vuong(power_law, truncated).ratio, math.erfc(math.sqrt(-difference)))


def _most_likely(log_density: Callable[[Floats], Floats], starts: Sequence[tuple[float, float]]) -> Floats:
    """Return the log densities of the data at the most likely parameters, the best of several starts."""
    from scipy.optimize import minimize  # noqa: PLC0415 -- on request only

    def loss(parameters: Floats) -> float:
        total = float(log_density(parameters).sum())
        return -total if math.isfinite(total) else math.inf

    found = [
        minimize(loss, list(start), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000})
        for start in starts
    ]
    return log_density(min(found, key=lambda result: float(result.fun)).x)


def _log_normaliser(alpha: float, z: float) -> float:
    """Return ln ∫₁^∞ x^(−α) exp(−z x) dx, by the trapezoid rule in u = ln x up to where the integrand vanishes."""
    upper = math.log1p(40 / z)
    if alpha > 1:
        upper = min(upper, 40 / (alpha - 1))
    u = _GRID * upper
    exponent = (1 - alpha) * u - z * np.exp(u)
    top = float(exponent.max())
    return top + math.log(float(np.trapezoid(np.exp(exponent - top), u)))


def _tail(eigenvalues: Floats, fit: PowerLawFit) -> Floats | None:
    """Return the tail in units of xmin; None for fewer than 3 values or if all are equal."""
    x = np.asarray(eigenvalues, dtype=np.float64)
    tail = x[x >= fit.xmin]
    return tail / fit.xmin if tail.size >= 3 and tail.max() > fit.xmin else None


def _log_power_law(x: Floats, fit: PowerLawFit) -> Floats:
    return np.log(fit.alpha - 1) - fit.alpha * np.log(x)


def _vuong(power_law: Floats, other: Floats) -> Comparison:
    """Return R and p from the log densities of both laws at each value."""
    d = power_law - other
    spread = float(d.std())
    if not spread > 0:
        return _NONE
    ratio = float(d.sum() / (d.size**0.5 * spread))
    return Comparison(ratio, math.erfc(abs(ratio) / math.sqrt(2)))
