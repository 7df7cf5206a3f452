"""Likelihood-ratio comparison of a power-law tail with an exponential one.

Reference: Q. H. Vuong, "Likelihood ratio tests for model selection and non-nested hypotheses", Econometrica 57 (1989)
307; applied to tails by Clauset, Shalizi, Newman (2009), §5.
"""

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.clauset2009 import PowerLawFit


def power_law_against_exponential(eigenvalues: Floats, fit: PowerLawFit) -> float:
    """R = Σ dᵢ / (√n · sd(d)), dᵢ = ln p_powerlaw(xᵢ) − ln p_exponential(xᵢ) on the tail; > 0 favours the power law.

    The exponential is the one of maximum likelihood on the same tail: rate 1/(mean(x) − xmin). Under equal merit R is a
    standard normal. NaN where there is no fit or the tail has fewer than 3 values.
    """
    tail = eigenvalues[eigenvalues >= fit.xmin]
    if tail.size < 3:
        return float("nan")
    x = tail / fit.xmin
    rate = 1 / (x.mean() - 1)
    d = np.log(fit.alpha - 1) - fit.alpha * np.log(x) - (np.log(rate) - rate * (x - 1))
    spread = float(d.std())
    return float(d.sum() / (tail.size**0.5 * spread)) if spread > 0 else float("nan")
