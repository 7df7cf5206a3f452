"""Generate matrices of known phase: the classifier's thresholds are set on some seeds, and tested on others.

The phases are those of Martin & Mahoney, JMLR 22 (2021) 165, §4: W = W_rand + Δ, and

- random-like: Δ = 0.
- bleeding-out: a few eigenvalues just above the Marchenko-Pastur edge λ⁺.
- bulk+spikes: a random bulk and a few eigenvalues well above λ⁺; "a few" as in their table, where bulk+spikes has up to
  4.8 % of the spectrum above λ⁺, and 9 = classes − 1 in any case.
- bulk-decay: a bulk, and a heavy tail that goes on from its edge; 8 % or more above λ⁺ in their table.
- heavy-tailed: the spectrum is that of a heavy-tailed ensemble rather than of noise with something on top.
- rank-collapse: a large mass at λ = 0.

Each range below is the phase with a margin at its borders, and what lies between two ranges belongs to neither:

- bleeding-out: λmax from 2 % above the cut that separates noise from spikes, or 1.05 λ⁺ where that is more, to
  1.14 λ⁺. The paper's figure has soft ranks of .92 there, and .80 for bulk+spikes: the border is near 1/.86 = 1.16 λ⁺.
- bulk+spikes: λmax from 1.28 λ⁺ (soft rank .78), every spike from 1.2 λ⁺; 1 to max(9, 4 % of M) of them.
- bulk-decay: max(18, 9 %) to max(24, 16 %) of M above λ⁺, Pareto from λ⁺ on with exponents 3.3 to 5; or a whole
  population with a power law of 3.4 to 4.5, in random directions.
- heavy-tailed: exponents 1.7 to 2.7 of the spectrum, of the population or of half of the spectrum; elements of
  exponent μ from 1 to 2.2.
- rank-collapse: rank from 20 to 90 % of M, exactly or with a bulk 1e-9 of the rest.

A shape is large where M >= 384. Elements of noise are Gaussian, uniform or Laplacian.
"""

from collections.abc import Callable

import numpy as np
import torch

from esdmon.spectrum import Phase, Spectrum, mp_edges
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.johnstone2001 import johnstone_centre, johnstone_scale
from tests.matrices import pareto, read_stack

LARGE = ((4096, 384), (2450, 500), (1024, 384), (512, 512), (1536, 512), (768, 768))
SMALL = ((384, 192), (300, 128), (784, 300), (256, 256), (512, 128))

Draw = Callable[[np.random.Generator, int, int], Spectrum]


def noise(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Independent elements of variance 1, of one of three laws."""
    law = rng.integers(3)
    if law == 0:
        return rng.standard_normal((n, m))
    if law == 1:
        return rng.uniform(-(3**0.5), 3**0.5, (n, m))
    return rng.laplace(scale=0.5**0.5, size=(n, m))


def spectrum_of(matrix: Floats) -> Spectrum:
    """Read it as a weight is read, in float64: with the scales of its rows and columns, and without dead ones."""
    return read_stack(torch.from_numpy(matrix)[None])


def random_like(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Noise of any scale."""
    return spectrum_of(noise(rng, n, m) * 10 ** rng.uniform(-3, 1))


def bleeding_out(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """1 to max(4, 1.5 %) eigenvalues from the cut to 1.14 λ⁺."""
    edge = mp_edges(n / m)[1]
    # The cut that the classifier starts from: where noise passes once in a thousand draws, Laplacian elements included.
    cut = (johnstone_centre(n, m) + (3.27 + 250 / (n * m) ** 0.5) * johnstone_scale(n, m)) / edge
    count = int(rng.integers(1, max(4, int(0.015 * m)) + 1))
    low = max(1.02 * cut, 1.05)
    return replaced(rng, n, m, rng.uniform(low, max(1.14, low + 0.01), count))


def spikes_replaced(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Spikes put where they are wanted, evenly or log-evenly spread."""
    top = rng.uniform(1.28, 8)
    count = int(rng.integers(1, max(9, int(0.04 * m)) + 1))
    rest = (
        rng.uniform(1.2, top, count - 1)
        if rng.random() < 0.5
        else np.exp(rng.uniform(np.log(1.2), np.log(top), count - 1))
    )
    return replaced(rng, n, m, np.append(rest, top))


def spikes_added(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """W = W_rand + Δ with Δ of low rank, whose singular values give these eigenvalues by Baik, Ben Arous, Péché."""
    edge, ratio = mp_edges(n / m)[1], m / n
    top = rng.uniform(1.28, 8)
    count = int(rng.integers(1, max(9, int(0.04 * m)) + 1))
    lam = np.append(rng.uniform(1.25, max(top, 1.26), count - 1), top) * edge
    # λ = (1 + s)(1/Q + s)/s for a spike of squared strength s, solved for s.
    b = lam - 1 - ratio
    strength = np.sqrt((b + np.sqrt(b**2 - 4 * ratio)) / 2 * n)
    left = np.linalg.qr(rng.standard_normal((n, count)))[0]
    right = np.linalg.qr(rng.standard_normal((m, count)))[0]
    return spectrum_of(noise(rng, n, m) + left * strength @ right.T)


def decaying_tail(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """A random bulk whose upper part is a Pareto tail from its edge on."""
    count = int(rng.integers(max(18, int(0.09 * m)), max(24, int(0.16 * m)) + 1))
    return replaced(rng, n, m, pareto(rng, rng.uniform(3.3, 5), count))


def decaying_population(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Noise with a population of exponent 3.4 to 4.5 in random directions."""
    return population(rng, n, m, rng.uniform(3.4, 4.5))


def heavy_population(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """The same with 1.7 to 2.7."""
    return population(rng, n, m, rng.uniform(1.7, 2.7))


def heavy_spectrum(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Eigenvalues that are a Pareto law."""
    return Spectrum.from_eigenvalues(pareto(rng, rng.uniform(1.7, 2.7), m), shape=(n, m))


def heavy_half(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """The upper half of the eigenvalues is a Pareto law, the lower is spread below it log-evenly over a decade."""
    tail = pareto(rng, rng.uniform(1.7, 2.7), m // 2)
    return Spectrum.from_eigenvalues(np.append(10 ** rng.uniform(-1, 0, m - tail.size), tail), shape=(n, m))


def heavy_elements(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Independent elements of p(w) ~ |w|^(−1−μ), symmetric."""
    mu = rng.uniform(1, 2.2)
    return spectrum_of((1 - rng.random((n, m))) ** (-1 / mu) * rng.choice([-1.0, 1.0], (n, m)))


def exact_collapse(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """A product of two matrices of lower rank."""
    rank = int(rng.integers(int(0.2 * m), int(0.9 * m)))
    return spectrum_of(noise(rng, n, rank) @ noise(rng, rank, m) / rank**0.5)


def decayed_collapse(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """What weight decay leaves: what is learned, of low rank, and a bulk that is all but gone."""
    rank = int(rng.integers(int(0.2 * m), int(0.6 * m)))
    learned = noise(rng, n, rank) * np.sqrt(pareto(rng, rng.uniform(1.5, 3), rank)) @ noise(rng, rank, m) / rank**0.5
    return spectrum_of(learned + 1e-6 * noise(rng, n, m))


def scaled(rng: np.random.Generator, matrix: Floats, spread: float) -> Floats:
    """Scale rows and columns by log-normal factors whose rms spreads by this many dex."""
    n, m = matrix.shape
    return matrix * 10 ** (spread * rng.standard_normal((n, 1))) * 10 ** (spread * rng.standard_normal(m))


def scaled_noise(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Noise whose rows and columns have scales of .03 to .3 dex."""
    return spectrum_of(scaled(rng, noise(rng, n, m), rng.uniform(0.03, 0.3)))


def scaled_spikes(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """1 to max(9, 4 %) spikes of 4 to 8 times the strength at which the first one shows, scaled by .03 to .1 dex."""
    count = int(rng.integers(1, max(9, int(0.04 * m)) + 1))
    strength = rng.uniform(4, 8, count) ** 0.5 * (n * m) ** 0.25 * 1.5
    left = np.linalg.qr(rng.standard_normal((n, count)))[0]
    right = np.linalg.qr(rng.standard_normal((m, count)))[0]
    return spectrum_of(scaled(rng, noise(rng, n, m) + left * strength @ right.T, rng.uniform(0.03, 0.1)))


def outlying_rows(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Noise in which 1 to 4 rows are 3 to 10 times as large as the others."""
    matrix = noise(rng, n, m)
    matrix[: rng.integers(1, 5)] *= rng.uniform(3, 10)
    return spectrum_of(matrix)


def dead_rows(rng: np.random.Generator, n: int, m: int) -> Spectrum:
    """Noise of which a tenth to a third of the columns has decayed to 1e-6."""
    matrix = noise(rng, n, m)
    matrix[:, : int(m * rng.uniform(0.1, 0.33))] *= 1e-6
    return spectrum_of(matrix)


ENSEMBLES: dict[str, tuple[Phase, Draw]] = {
    "noise": (Phase.RANDOM_LIKE, random_like),
    "at the edge": (Phase.BLEEDING_OUT, bleeding_out),
    "spikes, replaced": (Phase.BULK_SPIKES, spikes_replaced),
    "spikes, added": (Phase.BULK_SPIKES, spikes_added),
    "tail from the edge": (Phase.BULK_DECAY, decaying_tail),
    "population 3.4-4.5": (Phase.BULK_DECAY, decaying_population),
    "population 1.7-2.7": (Phase.HEAVY_TAILED, heavy_population),
    "spectrum 1.7-2.7": (Phase.HEAVY_TAILED, heavy_spectrum),
    "upper half 1.7-2.7": (Phase.HEAVY_TAILED, heavy_half),
    "elements μ 1-2.2": (Phase.HEAVY_TAILED, heavy_elements),
    "noise, scaled": (Phase.RANDOM_LIKE, scaled_noise),
    "spikes, scaled": (Phase.BULK_SPIKES, scaled_spikes),
    "noise, large rows": (Phase.RANDOM_LIKE, outlying_rows),
    "noise, dead columns": (Phase.RANDOM_LIKE, dead_rows),
    "low rank": (Phase.RANK_COLLAPSE, exact_collapse),
    "decayed bulk": (Phase.RANK_COLLAPSE, decayed_collapse),
}


def replaced(rng: np.random.Generator, n: int, m: int, tops: Floats) -> Spectrum:
    """The spectrum of noise with its largest eigenvalues replaced by `tops` times λ⁺."""
    lam = spectrum_of(noise(rng, n, m)).eigenvalues.copy()
    lam[lam.size - tops.size :] = tops * mp_edges(n / m)[1]
    return Spectrum.from_eigenvalues(lam, shape=(n, m))


def population(rng: np.random.Generator, n: int, m: int, alpha: float) -> Spectrum:
    """W = Z Σ^½, the eigenvalues of Σ from a Pareto law of exponent alpha, its eigenvectors random.

    With the axes as eigenvectors it would be noise with columns of different scales.
    """
    rotation = np.linalg.qr(rng.standard_normal((m, m)))[0]
    return spectrum_of(noise(rng, n, m) * np.sqrt(pareto(rng, alpha, m)) @ rotation)
