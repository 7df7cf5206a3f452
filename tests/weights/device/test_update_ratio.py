import math

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.weights import Drift, Matrix, discover, stacks
from esdmon.weights.device.sample import reduce_sample, sample_matrix, sample_tensor


def held(weight: Tensor) -> Matrix:
    return Matrix("w", lambda: weight, stacks.linear)


@pytest.mark.parametrize("shape", [(30, 20), (1000, 384), (4096, 64)], ids=str)
def test_ratio_is_that_of_the_whole(shape: tuple[int, int]) -> None:
    """On the sample ‖ΔW‖/‖W‖ is that of all elements within a few per cent."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    drift = Drift()
    assert math.isnan(drift.update(held(weight))())
    step = 0.01 * torch.randn(shape)
    expected = float(step.norm() / weight.norm())
    weight += step
    assert drift.update(held(weight))() == pytest.approx(expected, rel=0.1)
    assert drift.update(held(weight))() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [3e-6, 1e-4, 1e-3, 0.05])
def test_of_a_16_bit_weight_it_is_that_of_the_update_before_it_was_rounded(dtype: torch.dtype, size: float) -> None:
    """Beside masters in float32, as in mixed precision; the norm of what is seen is up to 25 times as large."""
    torch.manual_seed(0)
    master = torch.randn(1024, 512)
    drift = Drift()
    drift._size = 1 << 18  # of moves of 3e-6 few elements are seen
    drift.update(held(master.to(dtype)))
    before = master.to(dtype).double()
    step = size * torch.randn(1024, 512)
    expected = float(step.norm() / master.norm())
    master += step
    seen = float((master.to(dtype).double() - before).norm() / before.norm())
    assert drift.update(held(master.to(dtype)))() == pytest.approx(expected, rel=0.15)
    if dtype == torch.bfloat16 and size < 1e-5:
        assert seen > 15 * expected


def test_moves_of_many_units_are_as_they_are_seen() -> None:
    """Of a 16-bit weight that trains without masters, and moves in a few elements only."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, dtype=torch.bfloat16)
    drift = Drift()
    drift.update(held(weight))
    before = weight.double()
    weight[:2] *= 2
    expected = float((weight.double() - before).norm() / before.norm())
    assert drift.update(held(weight))() == pytest.approx(expected, rel=0.3)


def test_a_change_in_one_row_or_column_is_seen() -> None:
    """The sample lies along no row or column."""
    weight = torch.zeros(512, 384) + 1
    drift = Drift()
    drift.update(held(weight))
    weight[:, 5] = 2
    assert drift.update(held(weight))() > 0
    weight[7] = 3
    assert drift.update(held(weight))() > 0


def test_a_new_shape_has_no_ratio() -> None:
    """Samples of another shape do not compare."""
    drift = Drift()
    drift.update(held(torch.ones(20, 20)))
    assert math.isnan(drift.update(held(torch.ones(10, 10)))())


def test_leaving_zero_is_an_infinite_ratio() -> None:
    """A zero-initialised weight that starts to move has moved."""
    weight = torch.zeros(20, 20)
    drift = Drift()
    drift.update(held(weight))
    assert drift.update(held(weight))() == 0
    weight += 1
    assert drift.update(held(weight))() == math.inf


def test_a_weight_that_is_not_finite_has_no_ratio() -> None:
    """Once its numbers are back, it has moved."""
    weight = torch.ones(20, 20)
    drift = Drift()
    drift.update(held(weight))
    weight.fill_(math.nan)
    assert math.isnan(drift.peek([held(weight)])["w"])
    assert math.isnan(drift.update(held(weight))())
    assert math.isnan(drift.peek([held(weight)])["w"])
    weight.fill_(1)
    assert drift.peek([held(weight)])["w"] == math.inf


def test_draws_no_random_number() -> None:
    """The user's random state is the user's."""
    before = torch.get_rng_state()
    Drift().update(held(torch.ones(300, 300)))
    assert torch.equal(before, torch.get_rng_state())


class Counted(dict[str, Tensor]):
    """A mapping that counts how often its tensors are read."""

    reads = 0

    def __getitem__(self, name: str) -> Tensor:
        self.reads += 1
        return super().__getitem__(name)


def test_a_reference_is_read_once_and_then_for_its_own_readings() -> None:
    """Looks, marks and the samples that ranks compare use a sample of W₀ that was taken at the start."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(80, 80) for _ in range(6)))
    reference = Counted({name: value.clone() for name, value in model.state_dict().items()})
    with esdmon.watch(model, every=1, budget=None, sinks=None, mode="sync", reference=reference) as monitor:
        for step in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
            reference.reads = 0
            monitor.step()
            assert reference.reads == 6, step
    assert monitor.report is not None
    assert monitor.report["0"].update_ratio == pytest.approx(0.5, rel=0.3)
    matrices, drift = discover(model, reference=reference).matrices, Drift()
    for matrix in matrices:
        drift.update(matrix)
    reference.reads = 0
    ratios = drift.peek(matrices)
    for matrix in matrices:
        sample_matrix(matrix, 16)
        drift.update(matrix)
    assert reference.reads == 0
    assert set(ratios.values()) == {0.0}


def test_a_smaller_sample_is_part_of_the_larger_one() -> None:
    """That by which replicas are recognised is found in what is remembered of W₀."""
    for count in (10, 40, 4096, 5000):
        weight = torch.randn(count)
        for most in (20, 4096):
            taken = sample_tensor(weight, most)
            assert torch.equal(reduce_sample(taken, count, 16), sample_tensor(weight, 16))


def test_a_weight_of_another_shape_is_not_compared() -> None:
    """Samples of two large shapes have the same size, but other places."""
    torch.manual_seed(0)
    weight = torch.randn(256, 128)
    drift = Drift()
    drift.update(held(weight))
    pruned = weight[:128]
    assert drift.peek([held(pruned)]) == {"w": math.inf}
    assert math.isnan(drift.update(held(pruned))())
    assert drift.peek([held(pruned)]) == {"w": 0}
    assert drift.update(held(pruned))() == 0
