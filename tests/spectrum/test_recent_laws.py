"""Laws of noise that are reused from reading to reading."""

import numpy as np
import pytest
import torch

from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.spectrum.measures import BUILT_IN_MEASURES
from esdmon.spectrum.recent_laws import RecentLaws
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import separable_laws
from tests.benchmarks.ensembles import scaled


def _profile(rng: np.random.Generator, n: int, m: int) -> Profile:
    sides = [np.exp(0.5 * rng.standard_normal((1, side))) for side in (n, m)]
    return Profile(*(np.sort(side / side.mean()) for side in sides))


def _moved(profile: Profile, rng: np.random.Generator, by: float) -> Profile:
    sides = (profile.rows, profile.columns)
    return Profile(*(np.sort(side * (1 + by * rng.uniform(-1, 1, side.shape))) for side in sides))


def test_laws_are_reused_while_the_scales_hardly_move() -> None:
    rng = np.random.default_rng(0)
    laws, profile = RecentLaws(), _profile(rng, 256, 128)
    (first,) = laws(profile)
    assert laws(_moved(profile, rng, 1e-4)) == (first,)
    (other,) = laws(_moved(profile, rng, 0.05))
    assert other is not first
    assert laws(profile) == (first,)  # the last three are kept


def test_a_reused_edge_is_within_a_tenth_of_its_scale() -> None:
    rng = np.random.default_rng(1)
    reused = 0
    for n, m in ((64, 32), (256, 128), (1024, 512)):
        laws, profile = RecentLaws(), _profile(rng, n, m)
        (first,) = laws(profile)
        for by in np.geomspace(1e-5, 0.1, 30):
            moved = _moved(profile, rng, float(by))
            (found,) = laws(moved)
            (exact,) = separable_laws(moved)
            assert abs(found.edge - exact.edge) <= 0.1 * exact.scale
            reused += found is first
    assert 30 <= reused <= 80


def test_a_small_row_may_move_farther_than_the_largest() -> None:
    """By 3 %, that is, which moves the edge by more where it is the row that makes the edge."""
    rng = np.random.default_rng(4)
    rows = np.sort(np.append(np.exp(0.3 * rng.standard_normal(255)), 20.0))[None]
    profile = Profile(rows / rows.mean(), _profile(rng, 256, 128).columns)
    for place, is_reused in ((100, True), (-1, False)):
        laws = RecentLaws()
        (first,) = laws(profile)
        moved = profile.rows.copy()
        moved[0, place] *= 1.03
        (found,) = laws(Profile(np.sort(moved), profile.columns))
        assert (found is first) is is_reused


def test_small_scales_that_move_by_a_factor_have_another_law() -> None:
    """A tenth of the columns, whose eigenvalues are below all others: they do not move the edge."""
    rng = np.random.default_rng(5)
    laws, profile = RecentLaws(), _profile(rng, 256, 128)
    columns = [np.sort(np.append(np.full(13, small), profile.columns[0, 13:]))[None] for small in (0.01, 0.001)]
    (first,) = laws(Profile(profile.rows, columns[0]))
    (second,) = laws(Profile(profile.rows, columns[1]))
    assert second is not first
    assert first.edge == pytest.approx(second.edge, rel=0.002)


def test_another_shape_has_other_laws() -> None:
    rng = np.random.default_rng(2)
    laws = RecentLaws()
    flat = [Profile(np.ones((1, n)), np.ones((1, 64))) for n in (64, 128)]
    assert laws(flat[0])[0].edge != laws(flat[1])[0].edge
    assert len(laws(_profile(rng, 64, 64))) == 1


def test_a_reader_that_is_saved_computes_its_laws_again_as_one_that_resumes_from_it_does() -> None:
    rng = np.random.default_rng(3)
    weight = torch.from_numpy(scaled(rng, rng.standard_normal((128, 64)), 0.2)).float()
    measures = [measure for measure in BUILT_IN_MEASURES if measure.name == "bulk_edge"]
    reader = Reader({"a.weight": weight}, Plugins(), ReadingOptions(measures))
    before = reader.read_one("a", 0)
    weight *= 1 + 1e-4 * torch.from_numpy(rng.standard_normal((128, 1))).float()
    reader.state_dict()
    after = reader.read_one("a", 1)
    resumed = Reader({"a.weight": weight}, Plugins(), ReadingOptions(measures)).read_one("a", 1)
    assert before.measures["bulk_edge"] != after.measures["bulk_edge"]
    assert after.measures["bulk_edge"] == resumed.measures["bulk_edge"]
