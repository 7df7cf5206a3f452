"""Makes the table of `esdmon/spectrum/nulls.py` again: what the power-law fit says of pure noise.

python -m tests.benchmarks.alpha_null
"""

import numpy as np

from esdmon.spectrum import fit_power_law
from tests.matrices import gram_eigenvalues

SIDES = (16, 32, 64, 128, 256, 512, 1024)
RATIOS = (1, 2, 4, 8, 16)


def main() -> None:
    """Print the medians of alpha and D over draws of Gaussian noise, a row for each M and a column for each Q."""
    medians: dict[str, list[list[float]]] = {"ALPHA": [], "KS_DISTANCE": []}
    for m in SIDES:
        rows: dict[str, list[float]] = {"ALPHA": [], "KS_DISTANCE": []}
        for q in RATIOS:
            rng = np.random.default_rng([m, q])
            fits = []
            for _ in range(int(np.clip(400 * (128 / m) ** 2, 61, 2001))):
                matrix = rng.standard_normal((q * m, m))
                fits.append(fit_power_law(gram_eigenvalues(matrix)))
            rows["ALPHA"].append(round(float(np.median([fit.alpha for fit in fits])), 2))
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
