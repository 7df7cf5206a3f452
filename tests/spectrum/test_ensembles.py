"""Draws of the ensembles of known phase keep their phase; `tests/benchmarks/confusion.py` counts many."""

import numpy as np
import pytest

from esdmon.spectrum import classify
from tests.benchmarks.ensembles import ENSEMBLES

HARD = ("population 3.4-4.5", "population 1.7-2.7", "upper half 1.7-2.7", "noise, scaled")
"""Of these a good part reads as another phase, which the page on limits says."""


@pytest.mark.parametrize("name", [name for name in ENSEMBLES if name not in HARD])
def test_draws_have_the_phase_of_their_ensemble(name: str) -> None:
    """Five of 384 × 192 and five of 400 × 400, of which one may be read as another phase."""
    truth, draw = ENSEMBLES[name]
    phases = []
    for n, m in ((384, 192), (400, 400)):
        rng = np.random.default_rng([5, n, m])
        phases += [classify(draw(rng, n, m)).phase for _ in range(5)]
    assert phases.count(truth) >= 9, phases
