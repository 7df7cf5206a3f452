"""How far single steps move weights, from a few elements."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from esdmon.weights import StepSampler, discover


def sampler_of(model: nn.Module) -> StepSampler:
    sampler = StepSampler()
    sampler.watch(discover(model).matrices)
    return sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_step_is_measured(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv2d(8, 16, 3)).to(dtype)
    sampler = sampler_of(model)
    sampler.begin()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1.25)
    sampler.end()
    found = sampler.take()
    assert found["0"].ratio == pytest.approx(0.25, rel=0.02)
    assert found["0"].growth == pytest.approx(0.25, rel=0.02)
    assert found["1"] == found["1"]._replace(ratio=0, growth=0)
    assert sampler.last("0") == found["0"]
    assert math.isnan(sampler.last("2").ratio)
    assert sampler.take() == {}


def test_only_weights_that_are_parameters_are_read() -> None:
    """The power iteration of a spectral norm would go on with each reading."""
    model = nn.Sequential(nn.Linear(64, 64), parametrizations.spectral_norm(nn.Linear(64, 64)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = sampler_of(model)
    sampler.begin()
    sampler.end()
    assert sampler.take().keys() == {"0"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_was_zero_moves_infinitely_far() -> None:
    model = nn.Linear(64, 64)
    nn.init.zeros_(model.weight)
    sampler = sampler_of(model)
    sampler.begin()
    with torch.no_grad():
        model.weight.add_(1)
    sampler.end()
    (found,) = sampler.take().values()
    assert found.ratio == math.inf


def test_it_goes_on_from_its_state() -> None:
    model = nn.Linear(64, 64)
    sampler, other = sampler_of(model), sampler_of(model)
    sampler.begin()
    state = sampler.state_dict()
    with torch.no_grad():
        model.weight.mul_(2)
    other.load_state_dict(state)
    other.end()
    (found,) = other.take().values()
    assert found.ratio == pytest.approx(1)


def test_what_happens_between_samples_is_measured_too() -> None:
    """A weight that is replaced between two of them, and between a checkpoint and its resume."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    sampler, resumed = sampler_of(model), sampler_of(model)

    def shift_of(sampler: StepSampler) -> float:
        sampler.begin()
        sampler.end()
        (found,) = sampler.take().values()
        assert found.ratio == found.growth == 0
        return found.shift

    assert shift_of(sampler) == 0
    state = sampler.state_dict()
    with torch.no_grad():
        model.weight.mul_(1.5)
    resumed.load_state_dict(state)
    assert shift_of(sampler) == pytest.approx(0.5)
    assert shift_of(resumed) == pytest.approx(0.5)
    assert shift_of(sampler) == 0


def test_the_distance_from_the_start_is_kept() -> None:
    """Over the larger of both norms, and after a resume."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    start = model.weight.detach().clone()
    sampler = sampler_of(model)

    def start_ratio_of(sampler: StepSampler) -> float:
        sampler.begin()
        sampler.end()
        (found,) = sampler.take().values()
        return found.start_ratio

    assert start_ratio_of(sampler) == 0
    with torch.no_grad():
        model.weight.mul_(4)
    resumed = sampler_of(model)
    state = sampler.state_dict()
    resumed.load_state_dict(state)
    assert start_ratio_of(sampler) == start_ratio_of(resumed) == pytest.approx(0.75)
    with torch.no_grad():
        model.weight.copy_(start)
    assert start_ratio_of(sampler) == start_ratio_of(resumed) == 0


@pytest.mark.parametrize(("rows", "share"), [(0, 0.0), (32, 0.5), (64, 1.0)])
def test_zeros_of_the_gradient_are_counted(rows: int, share: float) -> None:
    """At the places of the weight's sample; the gradient does not change, and tiny values do not count as zero."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    sampler = sampler_of(model)
    sampler.begin()
    model.weight.grad = torch.full_like(model.weight, 1e-30)
    model.weight.grad[:rows] = 0
    kept = model.weight.grad.clone()
    sampler.end()
    (found,) = sampler.take().values()
    assert found.zero_gradient == pytest.approx(share, abs=0.02)
    assert torch.equal(model.weight.grad, kept)


def test_without_a_gradient_no_zeros_are_known() -> None:
    """As where the script sets gradients to None within the step, and the next sample has one again."""
    model = nn.Linear(64, 64)
    sampler = sampler_of(model)

    def share() -> float:
        sampler.begin()
        sampler.end()
        (found,) = sampler.take().values()
        return found.zero_gradient

    assert math.isnan(share())
    model.weight.grad = torch.zeros_like(model.weight)
    assert share() == 1
    model.weight.grad = torch.tensor([math.nan]).expand(64, 64)
    assert share() == 0


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_weight_of_another_shape_begins_anew(is_replaced: bool) -> None:  # noqa: FBT001
    """Samples of two shapes have other places: the distance from the start would be that of unrelated numbers."""
    torch.manual_seed(0)
    model = nn.Linear(128, 96)
    sampler = sampler_of(model)
    sampler.begin()
    sampler.end()
    sampler.take()
    narrow = model.weight.detach()[:, :64].clone()
    if is_replaced:
        model.weight = nn.Parameter(narrow)
        sampler.watch(discover(model).matrices)
        assert math.isnan(sampler.last("Linear").start_ratio)
    else:
        model.weight.data = narrow
    sampler.begin()
    with torch.no_grad():
        model.weight.mul_(1.25)
    sampler.end()
    (found,) = sampler.take().values()
    assert found.start_ratio == pytest.approx(0.2, rel=0.02)
    assert found.shift == 0
