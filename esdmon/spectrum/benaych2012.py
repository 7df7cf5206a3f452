"""Estimate for each spike the strength of the low-rank perturbation that causes it.

Legend: W = W_rand + Δ, where Δ has low rank and a singular value S·√N·σ; λ is the eigenvalue of WᵀW/N that Δ causes, in
units of σ² = 1. If S is below Q^(−¼), no eigenvalue leaves the bulk: the transition of Baik, Ben Arous, Péché, "Phase
transition of the largest eigenvalue for nonnull complex sample covariance matrices", Annals of Probability 33 (2005)
1643.

Reference: F. Benaych-Georges, R. R. Nadakuditi, "The singular values and vectors of low rank perturbations of large
rectangular random matrices", Journal of Multivariate Analysis 111 (2012) 120 (https://arxiv.org/abs/1103.2221), §3.1:
λ = (1 + S²)(1/Q + S²)/S².
"""

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.marchenko1967 import mp_edges
from esdmon.spectrum.spectrum import Spectrum


@explain_wrong_calls
def spike_strengths(spectrum: Spectrum) -> Floats:
    """Return S of each spike, ascending; empty without a bulk or without spikes.

    S is at least Q^(−¼), and S/Q^(−¼) is its distance from the transition. S²·N·σ² is the eigenvalue of ΔᵀΔ. If rows
    and columns have unequal scales, λ is scaled so that the edge is at (1 + 1/√Q)², and S is a rough estimate.
    """
    bulk = spectrum.noise_bulk
    if bulk is None or bulk.n_spikes == 0:
        return np.empty(0)
    ratio = 1 / spectrum.q
    b = bulk.standardised[bulk.standardised.size - bulk.n_spikes :] * mp_edges(spectrum.q)[1] - 1 - ratio
    return np.sqrt((b + np.sqrt(np.maximum(b**2 - 4 * ratio, 0))) / 2)
