"""The histogram in the record of a layer."""

import numpy as np
import pytest

from esdmon.runtime.workers.histogram import histogram
from esdmon.spectrum import Spectrum


@pytest.mark.parametrize("distinct", [1, 2, 7, 300])
def test_counts_are_those_of_numpy_also_where_values_are_equal(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    lam = rng.choice(rng.exponential(size=distinct) + 0.1, 300)
    esd = histogram(Spectrum.from_eigenvalues(lam, shape=(600, 300)))
    assert esd is not None
    counts, edges = np.histogram(np.log10(lam), bins=len(esd.counts))
    assert esd.counts == tuple(counts)
    assert (esd.low, esd.high) == (edges[0], edges[-1])


def test_a_matrix_that_is_zero_has_none() -> None:
    assert histogram(Spectrum.from_eigenvalues(np.zeros(12), shape=(24, 12))) is None
