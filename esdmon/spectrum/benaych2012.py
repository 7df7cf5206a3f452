"""How strong a perturbation a spike stands for.

Legend: W = W_rand + Δ, Δ of low rank with singular value S·√N·σ; λ is the eigenvalue of WᵀW/N that it makes, in units
of σ² = 1. Below S = Q^(−¼) there is none: the transition of Baik, Ben Arous, Péché (2005).

Reference: F. Benaych-Georges, R. R. Nadakuditi, "The singular values and vectors of low rank perturbations of large
rectangular random matrices", Journal of Multivariate Analysis 111 (2012) 120, §3.1: λ = (1 + S²)(1/Q + S²)/S².
"""

import numpy as np

from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.spectrum import Spectrum


def spike_strengths(spectrum: Spectrum) -> Floats:
    """S of each spike, ascending, at least Q^(−¼); empty where there is no bulk or no spike.

    S/Q^(−¼) is how far it is past the transition; S²·N·σ² is the eigenvalue of ΔᵀΔ itself.
    """
    bulk = spectrum.bulk
    if bulk is None or bulk.n_spikes == 0:
        return np.empty(0)
    ratio = 1 / spectrum.q
    b = bulk.standardised[bulk.standardised.size - bulk.n_spikes :] - 1 - ratio
    strengths: Floats = np.sqrt((b + np.sqrt(np.maximum(b**2 - 4 * ratio, 0))) / 2)
    return strengths
