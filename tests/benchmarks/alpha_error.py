"""Check the standard error of alpha: count how often the true exponent of exact Pareto draws lies within it.

    python -m tests.benchmarks.alpha_error [--draws 400]

xmin is searched in each draw, as in a reading, though the law holds from 1 on. Of a normal estimate with a known
standard deviation 68 % lie within one of them, and 95 % within two.
"""

import argparse

import numpy as np

from esdmon.spectrum import fit_power_law
from tests.matrices import pareto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    print("alpha     n   bias of median   within 1 s.e.   within 2   between alpha_low and alpha_high")
    for alpha in (1.7, 2.0, 2.5, 3.5):
        for size in (50, 100, 300, 1000):
            rng = np.random.default_rng([round(10 * alpha), size])
            fits = [fit_power_law(pareto(rng, alpha, size)) for _ in range(draws)]
            scores = np.abs([(fit.alpha - alpha) / fit.alpha_stderr for fit in fits])
            between = np.mean([fit.alpha_low <= alpha <= fit.alpha_high for fit in fits])
            bias = np.median([fit.alpha for fit in fits]) - alpha
            one, two = np.mean(scores < 1), np.mean(scores < 2)
            print(f"{alpha:5} {size:5} {bias:16.3f} {one:15.0%} {two:10.0%} {between:10.0%}")


if __name__ == "__main__":
    main()
