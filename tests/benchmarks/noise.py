"""Test the classifier on pure noise, which should be random-like, without a meaningful alpha and without alerts.

    python -m tests.benchmarks.noise
    python -m tests.benchmarks.noise --large     # M = 2048 and 4096, rows and columns of different scales, two dtypes
    python -m tests.benchmarks.noise --unequal   # rows of very different scales, and elements of which most are zero
    python -m tests.benchmarks.noise --other     # blocks, products, shared elements, spikes over unequal rows

Each row is a shape and a law of the elements; `meaningful` and `over` count draws, the other columns are shares.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from esdmon.spectrum import Phase, PhaseReading, Spectrum, classify
from esdmon.spectrum.arrays import Floats
from tests.benchmarks.ensembles import scaled
from tests.matrices import gram_eigenvalues, read_stack

SHAPES = tuple((q * m, m) for m in (64, 128, 256, 512, 1024) for q in (1, 2, 4, 16))
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "Laplacian": lambda rng, shape: rng.laplace(size=shape),
}


def draws_of(m: int, budget: float) -> int:
    """How many matrices: thousands of the small ones, at least 100."""
    return int(min(4000, max(100, budget * (256 / m) ** 3)))


def pooled(rng: np.random.Generator, slices: int, n: int, m: int, scale: float) -> Spectrum:
    """Slices of noise, the first of them scaled."""
    lam = np.stack([gram_eigenvalues(rng.standard_normal((n, m))) for _ in range(slices)])
    lam[0] *= scale**2
    return Spectrum.from_eigenvalues(lam, shape=(n, m))


def row(name: str, readings: list[PhaseReading]) -> tuple[int, int, int, int]:
    """Print one line; (draws, random-like, meaningful, over-regularised)."""
    count = len(readings)
    phases = [reading.phase for reading in readings]
    random_like = phases.count(Phase.RANDOM_LIKE)
    meaningful = sum(reading.alpha_is_meaningful for reading in readings)
    over = sum(reading.over_regularized for reading in readings)
    others = ", ".join(f"{p.value} {phases.count(p)}" for p in Phase if p is not Phase.RANDOM_LIKE and p in phases)
    print(f"{name:<36} {count:6d} {random_like / count:11.2%} {meaningful:10d} {over:5d}  {others}", flush=True)
    return count, random_like, meaningful, over


def large(seed: int) -> None:
    """Print how noise with scales is read, one draw in each dtype."""
    for n, m in ((2048, 2048), (8192, 2048), (4096, 4096), (11008, 4096)):
        for spread in (0.0, 0.1, 0.3):
            generator = torch.Generator().manual_seed(seed)
            readings = []
            for dtype in (torch.float32, torch.bfloat16):
                noise = torch.randn(n, m, generator=generator) * 10 ** (spread * torch.randn(n, 1, generator=generator))
                noise *= 10 ** (spread * torch.randn(m, generator=generator))
                readings.append(classify(read_stack(noise.to(dtype)[None])))
            row(f"{n} × {m}, {spread} dex", readings)


def unequal(seed: int) -> None:
    """Print how Gaussian noise is read whose rows differ by large factors, or of which a share is set to zero."""
    for n, m, count in ((256, 128, 40), (512, 512, 20)):
        for spread in (0.5, 0.7, 1.0, 1.3):
            rng = np.random.default_rng([seed, n, m])
            draws = (rng.standard_normal((n, m)) * 10 ** (spread * rng.standard_normal((n, 1))) for _ in range(count))
            row(f"{n} × {m}, rows of {spread} dex", [classify(read_stack(torch.from_numpy(w)[None])) for w in draws])
        for zeros in (0.5, 0.8, 0.9, 0.95):
            rng = np.random.default_rng([seed, n, m])
            draws = (rng.standard_normal((n, m)) * (rng.random((n, m)) >= zeros) for _ in range(count))
            row(f"{n} × {m}, {zeros:.0%} zeros", [classify(read_stack(torch.from_numpy(w)[None])) for w in draws])


def blocks(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Gaussian noise in 4 × 4 blocks whose scales differ by .3 dex."""
    return rng.standard_normal((n, m)) * np.kron(10 ** (0.3 * rng.standard_normal((4, 4))), np.ones((n // 4, m // 4)))


def block_diagonal(rng: np.random.Generator, n: int, m: int, *, count: int, factor: float) -> Floats:
    """Blocks of Gaussian noise on the diagonal, each the factor times as large as the one before, zeros beside them."""
    mask = np.kron(np.diag(factor ** np.arange(count)), np.ones((n // count, m // count)))
    return rng.standard_normal((n, m)) * mask


def orthogonal(rng: np.random.Generator, n: int, m: int) -> Floats:
    """An orthogonal matrix whose rows were scaled by .3 dex."""
    return np.linalg.qr(rng.standard_normal((n, m)))[0] * 10 ** (0.3 * rng.standard_normal((n, 1)))


def unevenly_spiked(rng: np.random.Generator, n: int, m: int, *, dex: float) -> Floats:
    """Noise whose rows differ, and five spikes of ten times the smallest visible strength, in all rows alike."""
    left, right = (np.linalg.qr(rng.standard_normal((side, 5)))[0] for side in (n, m))
    rows = 10 ** (dex * rng.standard_normal((n, 1)))
    matrix: Floats = (
        rows / np.sqrt(np.mean(rows**2)) * rng.standard_normal((n, m)) + 10 * (n * m) ** 0.25 * left @ right.T
    )
    return matrix


def smooth(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Gaussian noise of which neighbours in a row have a correlation of .9."""
    distance = np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    matrix: Floats = rng.standard_normal((n, m)) @ np.linalg.cholesky(0.9**distance).T
    return matrix


def toeplitz(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Gaussian diagonals."""
    matrix: Floats = rng.standard_normal(n + m)[np.subtract.outer(np.arange(n), np.arange(m)) + m]
    return matrix


OTHER: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "rows and columns .7 dex": lambda rng, n, m: scaled(rng, rng.standard_normal((n, m)), 0.7),
    "rows and columns 1 dex": lambda rng, n, m: scaled(rng, rng.standard_normal((n, m)), 1.0),
    "4 × 4 blocks of .3 dex": blocks,
    "8 blocks on the diagonal": lambda rng, n, m: block_diagonal(rng, n, m, count=8, factor=1.0),
    "4 of scales 1, 2, 4, 8": lambda rng, n, m: block_diagonal(rng, n, m, count=4, factor=2.0),
    "upper triangle": lambda rng, n, m: np.triu(rng.standard_normal((n, m))),
    "a product of two": lambda rng, n, m: rng.standard_normal((n, m)) @ rng.standard_normal((m, m)),
    "a Kronecker product": lambda rng, n, m: np.kron(
        rng.standard_normal((8, 8)), rng.standard_normal((n // 8, m // 8))
    ),
    "Toeplitz": toeplitz,
    "smooth rows": smooth,
    "orthogonal, rows .3 dex": orthogonal,
    "5 spikes, rows .2 dex": lambda rng, n, m: unevenly_spiked(rng, n, m, dex=0.2),
    "5 spikes, rows .3 dex": lambda rng, n, m: unevenly_spiked(rng, n, m, dex=0.3),
    "5 spikes, rows .5 dex": lambda rng, n, m: unevenly_spiked(rng, n, m, dex=0.5),
}


def other(seed: int) -> None:
    """Print how random matrices are read whose elements depend on each other, or have scales of their own."""
    for n, m, count in ((256, 128, 40), (512, 512, 20)):
        for name, draw in OTHER.items():
            rng = np.random.default_rng([seed, n, m])
            draws = (draw(rng, n, m).astype(np.float32) for _ in range(count))
            row(f"{n} × {m}, {name}", [classify(read_stack(torch.from_numpy(w)[None])) for w in draws])


def main() -> None:
    """Print the table and the totals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--budget", type=float, default=120, help="matrices of M = 256, and of others by 1/M³")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--unequal", action="store_true")
    parser.add_argument("--other", action="store_true")
    options = parser.parse_args()
    print(f"{'noise':<36} {'draws':>6} {'random-like':>11} {'meaningful':>10} {'over':>5}  others")
    if options.large:
        large(options.seed)
        return
    if options.unequal:
        unequal(options.seed)
        return
    if options.other:
        other(options.seed)
        return
    totals = np.zeros(4, dtype=int)
    for n, m in SHAPES:
        for place, (law, draw) in enumerate(LAWS.items()):
            rng = np.random.default_rng([options.seed, place, n, m])
            spectra = (
                Spectrum.from_eigenvalues(gram_eigenvalues(draw(rng, (n, m))), shape=(n, m))
                for _ in range(draws_of(m, options.budget))
            )
            totals += row(f"{n} × {m} {law}", [classify(spectrum) for spectrum in spectra])
    for slices, scale in ((9, 1.0), (9, 2.0), (25, 2.0)):
        for n, m in ((128, 64), (256, 128)):
            rng = np.random.default_rng([options.seed, slices, n, m])
            count = draws_of(m, options.budget / slices)
            readings = [classify(pooled(rng, slices, n, m, scale)) for _ in range(count)]
            totals += row(f"{slices} slices {n} × {m}, one × {scale:g}", readings)
    count, random_like, meaningful, over = totals
    print(
        f"all: {count} draws, random-like {random_like / count:.3%}, meaningful {meaningful}, over-regularised {over}"
    )


if __name__ == "__main__":
    main()
