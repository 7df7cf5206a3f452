"""Random matrices of known kind, and their spectra: the known truth that the numerics are held against."""

import math

import numpy as np
from torch import Tensor

from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.weights.device.eigen import read_spectrum
from esdmon.weights.matrix import Matrix


def gaussian(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Independent standard normal elements, n × m."""
    return rng.standard_normal((n, m))


def spectrum_of(matrix: Floats) -> Spectrum:
    """The spectrum of one N × M matrix, by singular values."""
    n, m = max(matrix.shape), min(matrix.shape)
    singular = np.linalg.svd(matrix, compute_uv=False)
    return Spectrum.from_eigenvalues(singular**2 / n, shape=(n, m))


def read_stack(stack: Tensor, *also: str) -> Spectrum:
    """The spectrum of a (slices, rows, columns) stack, read as a weight is: with scales, and without dead units."""
    return read_spectrum(Matrix("matrix", lambda: stack, lambda weight: weight), also=also)


def gram_eigenvalues(matrix: Floats) -> Floats:
    """Of WᵀW/N for an N × M matrix, N >= M, by the Gram matrix: sooner than singular values, for many draws."""
    lam: Floats = np.abs(np.linalg.eigvalsh(matrix.T @ matrix / matrix.shape[0])).astype(np.float64)
    return lam


def pooled(slices: list[Floats]) -> Spectrum:
    """The spectrum of slices of one shape."""
    n, m = max(slices[0].shape), min(slices[0].shape)
    lam = np.stack([np.linalg.svd(piece, compute_uv=False) ** 2 / n for piece in slices])
    return Spectrum.from_eigenvalues(lam, shape=(n, m))


def with_eigenvalues(rng: np.random.Generator, lam: Floats, n: int) -> Floats:
    """An n × M matrix whose WᵀW/n has these eigenvalues, in random directions."""
    m = lam.size
    left = np.linalg.qr(rng.standard_normal((n, m)))[0]
    right = np.linalg.qr(rng.standard_normal((m, m)))[0]
    matrix: Floats = left * np.sqrt(lam * n) @ right
    return matrix


def pareto(rng: np.random.Generator, alpha: float, size: int) -> Floats:
    """Draws of p(x) ~ x^(−alpha), x >= 1."""
    draws: Floats = (1 - rng.random(size)) ** (-1 / (alpha - 1))
    return draws


def spike_cut(n: int, m: int, slices: int = 1) -> float:
    """The eigenvalue above which one of N × M noise of variance 1 is a spike, written out: μ + c·s."""
    root_n, root_m = (n - 1) ** 0.5, m**0.5
    centre, scale = (root_n + root_m) ** 2 / n, (root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3) / n
    quantile = (3.2722**1.5 + 3 * math.log(slices)) ** (2 / 3)
    return float(centre + (quantile + 250 / (n * m) ** 0.5) * scale)


def spiked(rng: np.random.Generator, n: int, m: int, spikes: Floats) -> Floats:
    """Noise of σ² = 1 with the largest eigenvalues of WᵀW/n put to `spikes` times the Marchenko-Pastur edge."""
    left, singular, right = np.linalg.svd(rng.standard_normal((n, m)), full_matrices=False)
    edge = (1 + (m / n) ** 0.5) ** 2
    singular[: spikes.size] = np.sqrt(np.sort(spikes)[::-1] * edge * n)
    matrix: Floats = left * singular @ right
    return matrix
