"""What hypothesis draws."""

import numpy as np
from hypothesis import strategies as st

from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats

seeds = st.integers(0, 2**32 - 1)


@st.composite
def matrices(draw: st.DrawFn, *, smallest: int = 2, largest: int = 40) -> Floats:
    """N × M of normal, heavy-tailed or low-rank elements, N >= M."""
    m = draw(st.integers(smallest, largest))
    n = m + draw(st.integers(0, largest))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["normal", "cauchy", "low rank"]))
    if kind == "low rank":
        rank = draw(st.integers(1, m))
        return rng.standard_normal((n, rank)) @ rng.standard_normal((rank, m))
    return rng.standard_cauchy((n, m)) if kind == "cauchy" else rng.standard_normal((n, m))


@st.composite
def hostile_spectra(draw: st.DrawFn) -> Spectrum:
    """Eigenvalues at the ends of what float64 holds: zeros, ties, subnormals, 1e±300."""
    values = st.sampled_from([0.0, 5e-324, 1e-300, 1e-30, 1e-7, 1.0, 1.0000001, 2.0, 1e30, 1e300])
    m = draw(st.integers(1, 30))
    slices = draw(st.integers(1, 3))
    lam = draw(st.lists(values, min_size=m * slices, max_size=m * slices))
    n = m + draw(st.integers(0, 50))
    return Spectrum.from_eigenvalues(np.array(lam).reshape(slices, m), shape=(n, m))
