"""Measure how often the classifier is right on matrices of known phase.

    python -m tests.benchmarks.confusion --draws 40 --seed 2

Thresholds were set with --seed 1; what is quoted comes from --seed 2, which draws other matrices and other parameters.
"""

import argparse
from collections import Counter

import numpy as np

from esdmon.spectrum import Phase, classify
from tests.benchmarks.ensembles import ENSEMBLES, LARGE, SMALL

M_64 = ((64, 64), (128, 64), (256, 64))
M_32 = ((32, 32), (64, 32), (128, 32), (512, 32))
SHORT = dict(zip(Phase, ("RL", "BO", "BS", "BD", "HT", "RC", "--"), strict=True))


def table(shapes: tuple[tuple[int, int], ...], draws: int, seed: int) -> dict[str, Counter[Phase]]:
    """For each ensemble how many draws were read as which phase."""
    counts: dict[str, Counter[Phase]] = {}
    for place, (name, (_, draw)) in enumerate(ENSEMBLES.items()):
        counts[name] = Counter()
        for n, m in shapes:
            rng = np.random.default_rng([seed, place, n, m])
            counts[name].update(classify(draw(rng, n, m)).phase for _ in range(draws))
    return counts


def show(title: str, counts: dict[str, Counter[Phase]]) -> None:
    """The whole table, the share that is right, and the share that is right or in a neighbouring phase."""
    print(f"\n{title}\n{'ensemble':<20} {'truth':>5}  " + " ".join(f"{SHORT[phase]:>5}" for phase in Phase))
    right = adjacent = 0.0
    by_phase: dict[Phase, list[float]] = {}
    for name, counter in counts.items():
        truth = ENSEMBLES[name][0]
        total = counter.total()
        print(f"{name:<20} {SHORT[truth]:>5}  " + " ".join(f"{counter[phase] or '.':>5}" for phase in Phase))
        by_phase.setdefault(truth, []).append(counter[truth] / total)
        right += counter[truth] / total
        near = [phase for phase in Phase if phase.code >= 0 and abs(phase.code - truth.code) <= 1]
        adjacent += sum(counter[phase] for phase in near) / total
    shares = ", ".join(f"{SHORT[phase]} {np.mean(values):.1%}" for phase, values in by_phase.items())
    print(f"right {right / len(counts):.1%}; right or adjacent {adjacent / len(counts):.1%}; by phase: {shares}")


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=40, help="of each ensemble at each shape")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="M = 64 and M = 32 instead")
    options = parser.parse_args()
    large = (("M >= 384", LARGE), ("128 <= M < 384", SMALL))
    for title, shapes in (("M = 64", M_64), ("M = 32", M_32)) if options.small else large:
        counts = table(shapes, options.draws, options.seed)
        show(f"{title}: {options.draws} draws at each of {len(shapes)} shapes", counts)


if __name__ == "__main__":
    main()
