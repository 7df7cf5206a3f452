"""Regenerate the table of `esdmon/spectrum/nulls.py`: the power-law fit on pure noise.

    python -m tests.benchmarks.alpha_null

WᵀW of an N × M matrix of standard normal elements has eigenvalues of the same law as BBᵀ, where B is M × M and
bidiagonal with independent elements: χ(N), χ(N − 1), … on the diagonal, χ(M − 1), χ(M − 2), … below it (I. Dumitriu,
A. Edelman, "Matrix models for beta ensembles", J. Math. Phys. 43 (2002) 5830, https://arxiv.org/abs/math-ph/0206043).
So a draw takes M² operations and not N·M², and tall matrices cost no more than square ones.
"""

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from esdmon.spectrum import fit_power_law
from esdmon.spectrum.arrays import Floats

SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATIOS = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
DRAWS = 200_000
"""Draws times M, but at least 101 and at most 1001 draws of each shape."""


def eigenvalues_of_noise(rng: np.random.Generator, n: int, m: int) -> Floats:
    """Draw the eigenvalues of WᵀW/N of an N × M matrix of standard normal elements, N >= M."""
    diagonal = np.sqrt(rng.chisquare(n - np.arange(m)))
    below = np.sqrt(rng.chisquare(m - 1 - np.arange(m - 1)))
    squares = diagonal**2
    squares[1:] += below**2
    lam: Floats = np.abs(eigvalsh_tridiagonal(squares, below * diagonal[:-1])) / n
    return lam


def main() -> None:
    """Print the medians of alpha and D over draws of Gaussian noise, a row for each M and a column for each Q."""
    medians: dict[str, list[list[float]]] = {"ALPHA": [], "KS_DISTANCE": []}
    for m in SIDES:
        rows: dict[str, list[float]] = {"ALPHA": [], "KS_DISTANCE": []}
        for q in RATIOS:
            rng = np.random.default_rng([m, q])
            draws = min(1001, max(101, DRAWS // m + 1))
            fits = [fit_power_law(eigenvalues_of_noise(rng, q * m, m)) for _ in range(draws)]
            alpha = float(np.median([fit.alpha for fit in fits]))
            rows["ALPHA"].append(round(alpha, 2 if alpha < 10 else 1))
            rows["KS_DISTANCE"].append(round(float(np.median([fit.ks_distance for fit in fits])), 3))
        for name, row in rows.items():
            medians[name].append(row)
    for name, table in medians.items():
        print(f"_{name} = np.array(\n    [")
        for row in table:
            print(f"        {row},")
        print("    ]\n)")


if __name__ == "__main__":
    main()
