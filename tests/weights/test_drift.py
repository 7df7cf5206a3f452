import math

import pytest
import torch
from torch import Tensor

from esdmon.weights import Drift, Matrix, stacks


def held(weight: Tensor) -> Matrix:
    return Matrix("w", lambda: weight, stacks.linear)


@pytest.mark.parametrize("shape", [(30, 20), (1000, 384), (4096, 64)], ids=str)
def test_ratio_is_that_of_the_whole(shape: tuple[int, int]) -> None:
    """On the sample ‖ΔW‖/‖W‖ is that of all elements within a few per cent."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    drift = Drift()
    assert math.isnan(drift.update(held(weight)))
    step = 0.01 * torch.randn(shape)
    expected = float(step.norm() / weight.norm())
    weight += step
    assert drift.update(held(weight)) == pytest.approx(expected, rel=0.1)
    assert drift.update(held(weight)) == 0


def test_a_change_in_one_row_or_column_is_seen() -> None:
    """The sample lies along no row or column."""
    weight = torch.zeros(512, 384) + 1
    drift = Drift()
    drift.update(held(weight))
    weight[:, 5] = 2
    assert drift.update(held(weight)) > 0
    weight[7] = 3
    assert drift.update(held(weight)) > 0


def test_a_new_shape_starts_anew() -> None:
    """What was measured before does not compare."""
    drift = Drift()
    drift.update(held(torch.ones(20, 20)))
    assert math.isnan(drift.update(held(torch.ones(10, 10))))


def test_leaving_zero_is_an_infinite_ratio() -> None:
    """A zero-initialised weight that starts to move has moved."""
    weight = torch.zeros(20, 20)
    drift = Drift()
    drift.update(held(weight))
    assert drift.update(held(weight)) == 0
    weight += 1
    assert drift.update(held(weight)) == math.inf


def test_draws_no_random_number() -> None:
    """The user's random state is the user's."""
    before = torch.get_rng_state()
    Drift().update(held(torch.ones(300, 300)))
    assert torch.equal(before, torch.get_rng_state())
