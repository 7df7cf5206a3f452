"""Compute the curves in the picture of a spectrum: density of eigenvalues, noise that fits the bulk, power law."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from esdmon.records.esd import Esd
from esdmon.spectrum import mp_density, mp_edges

if TYPE_CHECKING:
    from esdmon.records.layer import LayerReport

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""log₁₀ λ, and log₁₀ of the density in λ, of equal length."""


def heights(esd: Esd) -> NDArray[np.float64]:
    """Return log₁₀ of the density in each bin; −∞ in an empty one."""
    with np.errstate(divide="ignore"):
        density: NDArray[np.float64] = np.log10(np.asarray(esd.counts, float) / (esd.total * np.asarray(esd.widths)))
    return density


def noise(layer: LayerReport, esd: Esd) -> Curve | None:
    """Return the density of the noise that fits the bulk; None if no bulk was found."""
    edge, sigma2 = layer.measures.get("bulk_edge", np.nan), layer.measures.get("bulk_sigma", np.nan) ** 2
    if not (np.isfinite(edge) and edge > 0 and sigma2 > 0):
        return None
    with np.errstate(all="ignore"):
        if esd.noise:  # noise with different scales of rows and columns
            edges = np.asarray(esd.edges)
            return (edges[1:] + edges[:-1]) / 2, np.log10(np.asarray(esd.noise) / (esd.total * np.asarray(esd.widths)))
        low, high = mp_edges(layer.Q)
        inside = np.geomspace(max(low, 1e-6 * high), high, 200)[1:-1]
        share = 1 - layer.measures.get("n_spikes", 0.0) / layer.n_eigenvalues
        return np.log10(inside * sigma2), np.log10(share * mp_density(inside, layer.Q) / sigma2)


def power_law(layer: LayerReport, esd: Esd) -> Curve | None:
    """Return the two ends of the fitted power law, which begins at xmin; None without a fit."""
    alpha, xmin, n_tail = (layer.measures.get(name, np.nan) for name in ("alpha", "xmin", "n_tail"))
    if not (np.isfinite(alpha) and alpha > 1 and xmin > 0 and n_tail > 0):
        return None
    start = np.log10(xmin)
    height = np.log10(n_tail / layer.n_eigenvalues * (alpha - 1)) - start
    return np.array([start, esd.high]), np.array([height, height - alpha * (esd.high - start)])
