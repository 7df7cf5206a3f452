"""The law of noise with rows and columns of different scales, against Marchenko-Pastur and against simulation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esdmon.spectrum import Phase, classify
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.laws import marchenko_pastur
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import SeparableLaw, edge_weights, separable_laws
from tests.matrices import read_stack

SHAPES = ((64, 64), (128, 64), (384, 192), (512, 512), (4096, 384))


def log_normal(rng: np.random.Generator, slices: int, count: int, dex: float) -> Floats:
    """Ascending scales of mean 1 whose square roots spread by some dex."""
    scales: Floats = np.sort(10 ** (2 * dex * rng.standard_normal((slices, count))), axis=1)
    scales /= scales.mean(axis=1, keepdims=True)
    return scales


def draw(rng: np.random.Generator, profile: Profile, slice_: int = 0) -> Floats:
    """Eigenvalues of one matrix of noise."""
    scales = np.outer(profile.rows[slice_], profile.columns[slice_])
    w = rng.standard_normal(scales.shape) * np.sqrt(scales)
    return np.linalg.eigvalsh(w.T @ w / w.shape[0])


def ks_times_m(law: SeparableLaw, lam: Floats) -> float:
    """M times the Kolmogorov-Smirnov distance."""
    cdf, steps = law.cdf(lam), np.arange(lam.size + 1) / lam.size
    return float(lam.size * max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_equal_scales_are_marchenko_pastur(n: int, m: int) -> None:
    law = separable_laws(Profile(np.ones((1, n)), np.ones((1, m))))[0]
    known = marchenko_pastur(n, m)
    assert law.edge == pytest.approx(known.edge, rel=1e-9)
    assert law.centre == pytest.approx(known.centre, rel=1e-9)
    assert law.scale == pytest.approx(known.scale, rel=1e-9)
    lam = np.linspace(0, 1.1 * known.edge, 500)
    assert np.abs(law.cdf(lam) - known.cdf(lam)).max() < 5e-5


@pytest.mark.parametrize(("n", "m", "dex"), [(64, 64, 0.1), (384, 192, 0.1), (384, 192, 0.2), (512, 256, 0.3)])
def test_law_and_edge_are_those_of_drawn_noise(n: int, m: int, dex: float) -> None:
    rng = np.random.default_rng([n, m])
    profile = Profile(log_normal(rng, 1, n, dex), log_normal(rng, 1, m, dex))
    law = separable_laws(profile)[0]
    spectra = [draw(rng, profile) for _ in range(12)]
    assert max(ks_times_m(law, lam) for lam in spectra) < 5
    # The Tracy-Widom law has mean -1.21 and standard deviation 1.27.
    scores = np.array([(lam[-1] - law.centre) / law.scale for lam in spectra])
    assert -2.5 < scores.mean() < 0
    assert scores.max() < 3.3


@pytest.mark.parametrize("is_bimodal", [False, True])
@pytest.mark.parametrize(("n", "m", "dex"), [(1024, 256, 0.2), (2048, 128, 0.3), (6400, 64, 0.1), (8192, 128, 0.1)])
def test_the_law_of_a_tall_matrix_resolves_the_scales_of_its_columns(
    n: int, m: int, dex: float, *, is_bimodal: bool
) -> None:
    """The taller it is, the narrower are the bands around each scale, and the gaps between them."""
    rng = np.random.default_rng([n, m])
    columns = rng.choice([1, 10**dex], (1, m)) ** 2 if is_bimodal else log_normal(rng, 1, m, dex)
    profile = Profile(np.ones((1, n)), np.sort(columns / columns.mean()))
    law = separable_laws(profile)[0]
    spectra = [draw(rng, profile) for _ in range(4)]
    assert max(ks_times_m(law, lam) for lam in spectra) < 5
    assert max((lam[-1] - law.centre) / law.scale for lam in spectra) < 3.3


@pytest.mark.parametrize(("n", "m", "exponent"), [(5000, 64, 1.0), (2000, 256, 0.5), (2000, 128, 1.0)])
def test_a_law_with_rows_as_frequent_as_words_is_that_of_drawn_noise(n: int, m: int, exponent: float) -> None:
    """Their rms falls with their rank, as of an embedding whose rows learn as often as their words occur."""
    rng = np.random.default_rng([n, m])
    noise = rng.standard_normal((n, m)) * (np.arange(n)[:, None] + 1.0) ** -exponent
    reading = classify(read_stack(torch.from_numpy(noise)[None]))
    assert reading.phase is Phase.RANDOM_LIKE, reading.explanation


@pytest.mark.parametrize("seed", [2, 20, 49])
def test_a_law_with_a_few_huge_rows_is_that_of_drawn_noise(seed: int) -> None:
    """Newton's method may find a real solution of the equations, which is wrong within the bulk."""
    rng, n, m = np.random.default_rng(seed), 256, 128
    rows, columns = log_normal(rng, 1, n, 0.0), log_normal(rng, 1, m, 0.2)
    rows[0, :2] *= 10 ** rng.uniform(1, 4, 2)
    rows = np.sort(rows / rows.mean())
    law = separable_laws(Profile(rows, columns))[0]
    assert max(ks_times_m(law, draw(rng, Profile(rows, columns))) for _ in range(4)) < 5
    for _ in range(8):
        rounded = Profile(rows * (1 + 1e-15 * rng.standard_normal(n)), columns * (1 + 1e-15 * rng.standard_normal(m)))
        assert np.abs(separable_laws(rounded)[0].table - law.table).max() * m < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_law_with_rows_and_columns_that_are_nearly_dead_is_that_of_the_transpose(seed: int) -> None:
    """Near 0 the solution for |z| → ∞ is far from the one that is sought."""
    rng, m = np.random.default_rng(seed), 64
    rows, columns = log_normal(rng, 1, m, 0.3), log_normal(rng, 1, m, 0.1)
    rows[0, :6] *= 10.0 ** -np.arange(2, 8)
    columns[0, 0] *= 1e-5
    rows, columns = (np.sort(side / side.mean()) for side in (rows, columns))
    law, transposed = (separable_laws(Profile(*sides))[0] for sides in ((rows, columns), (columns, rows)))
    assert np.abs(law.table - transposed.table).max() * m < 0.1
    assert max(ks_times_m(law, draw(rng, Profile(rows, columns))) for _ in range(8)) < 5


def test_slices_have_laws_of_their_own() -> None:
    rng = np.random.default_rng(0)
    profile = Profile(log_normal(rng, 3, 128, 0.1), log_normal(rng, 3, 64, 0.1))
    together = separable_laws(profile)
    for i, law in enumerate(together):
        alone = separable_laws(Profile(profile.rows[i : i + 1], profile.columns[i : i + 1]))[0]
        assert law.edge == pytest.approx(alone.edge, rel=1e-9)
        assert np.abs(law.table - alone.table).max() < 1e-6


@given(
    seed=st.integers(0, 1000), m=st.integers(8, 80), more=st.integers(0, 200), dex=st.floats(0, 0.6), few=st.booleans()
)
def test_any_profile_has_a_distribution(*, seed: int, m: int, more: int, dex: float, few: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = log_normal(rng, 1, m + more, dex), log_normal(rng, 1, m, dex)
    if few:  # one huge row, and columns of two sizes
        rows[0, 0] *= 100
        columns[0, ::2] /= 30
        rows, columns = np.sort(rows / rows.mean()), np.sort(columns / columns.mean())
    law = separable_laws(Profile(rows, columns))[0]
    assert 0 <= law.lower < law.edge < law.centre + 10 * law.scale
    assert law.scale > 0
    assert law.table[0] == 0
    assert law.table[-1] == pytest.approx(1, abs=1e-6)
    assert np.all(np.diff(law.table) >= 0)
    p = np.linspace(0.05, 0.95, 19)
    assert np.allclose(law.cdf(law.quantile(p)), p, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1], ids=["rows", "columns"])
def test_the_edge_moves_with_each_scale_as_its_weight_says(side: int) -> None:
    """Against differences; all scales of a side together move it by as much as they move."""
    profile = Profile(*(log_normal(np.random.default_rng(0), 1, count, 0.3) for count in (64, 40)))
    laws = separable_laws(profile)
    weights = edge_weights(profile, laws)[side][0]
    assert weights.sum() == pytest.approx(1)
    for place in (0, 20, 35, -2, -1):
        sides = [profile.rows.copy(), profile.columns.copy()]
        sides[side][0, place] *= 1 + 1e-5
        (moved,) = separable_laws(Profile(*sides))
        assert np.log(moved.edge / laws[0].edge) == pytest.approx(1e-5 * weights[place], rel=0.02, abs=1e-9)
