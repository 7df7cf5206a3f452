"""How plausible a power law is: the share of true power laws that look worse than the data.

Reference: Clauset, Shalizi, Newman (2009), §4.1: they take 2500 draws for a p-value good to .01 and accept from .1 on.
"""

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.clauset2009 import PowerLawFit, fit_power_law


def goodness_of_fit(eigenvalues: Floats, fit: PowerLawFit, *, draws: int = 100, seed: int = 0) -> float:
    """P(D* >= D) over samples drawn from the fit above xmin and from the data below, each fitted anew.

    The standard error is √(p(1 − p)/draws), at most .05 for 100. It costs that many fits: on request only. Eigenvalues
    repel each other, so on spectra the p-value errs upwards.

    Raises:
        ValueError: for fewer than one draw.
    """
    if draws < 1:
        msg = f"draws is at least 1, got {draws}"
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
