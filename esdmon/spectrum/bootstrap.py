"""Compute the p-value of a power-law fit, by a parametric bootstrap.

Reference: A. Clauset, C. R. Shalizi, M. E. J. Newman, "Power-law distributions in empirical data", SIAM Review 51
(2009) 661 (https://arxiv.org/abs/0706.1062), §4.1: the authors use 2500 draws for a p-value accurate to .01, and accept
the power law if p >= .1.
"""

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.clauset2009 import PowerLawFit, fit_power_law


@explain_wrong_calls
def goodness_of_fit(eigenvalues: Floats, fit: PowerLawFit, *, draws: int = 100, seed: int = 0) -> float:
    """Return the p-value of a fit: P(D* >= D), where D* is the distance of a sample from its own fit.

    Samples are drawn from the fitted law above xmin, and from the data below. The test assumes independent values.
    Eigenvalues repel each other, so the p-value of a spectrum is biased upwards.

    Args:
        eigenvalues: 1-D, any order; values that are not positive and finite are left out.
        fit: the fit of these eigenvalues.
        draws: samples, one fit each. The standard error is √(p(1 − p)/draws), at most .05 for 100 (our choice).
        seed: seed of the random draws.

    Returns:
        p between 0 and 1; NaN if `fit` has no tail.

    Raises:
        ValueError: if `draws` is below 1.
    """
    if draws < 1:
        msg = f"draws must be at least 1; got {draws}"
        raise ValueError(msg)
    if not fit.n_tail:
        return float("nan")
    rng = np.random.default_rng(seed)
    x = np.asarray(eigenvalues, dtype=np.float64)
    x = x[np.isfinite(x) & (x > 0)]
    below = x[x < fit.xmin]
    worse = 0
    for _ in range(draws):
        n_tail = int(rng.binomial(x.size, fit.n_tail / x.size))
        tail = fit.xmin * (1 - rng.random(n_tail)) ** (-1 / (fit.alpha - 1))
        rest = rng.choice(below, x.size - n_tail) if below.size else np.empty(0)
        worse += fit_power_law(np.concatenate([rest, tail])).ks_distance >= fit.ks_distance
    return worse / draws
