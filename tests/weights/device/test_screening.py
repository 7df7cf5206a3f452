"""Norms of weights in a few passes over them, against their singular values."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from esdmon.records import Screened
from esdmon.weights import Matrix, Screener, Transfers, discover, sum_of_squares
from esdmon.weights.device import screening
from tests.simulated_device import SimulatedDevice


def matrix_of(layer: nn.Module) -> Matrix:
    (matrix,) = discover(nn.Sequential(layer)).matrices
    return matrix


def with_spike(rows: int, columns: int, spike: float, *, scale: float = 1.0) -> nn.Linear:
    """Noise, and one direction that is so many times as large as the largest of noise."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(columns, rows, bias=False)
    left, right = (torch.randn(size, generator=generator) for size in (rows, columns))
    edge = rows**0.5 + columns**0.5
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=generator))
        layer.weight.add_(spike * edge * torch.outer(left / left.norm(), right / right.norm())).mul_(scale)
    return layer


def screened(screener: Screener, matrix: Matrix, step: int = 1) -> Screened:
    assert screener.screen(matrix, step) == 0
    (found,) = screener.take()
    assert (found.name, found.step) == (matrix.name, step)
    return found


def sigma(weight: Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double()).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (1500, 900)], ids=str)
def test_norms_are_those_of_the_weight(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Also of a weight that is multiplied in blocks, along either side; and from below."""
    layer = with_spike(*shape, spike=3.0).to(dtype)
    found = screened(Screener(), matrix_of(layer))
    weight = layer.weight.detach().double()
    assert found.frobenius_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert found.spectral_norm == pytest.approx(sigma(weight), rel=1e-4)
    assert found.spectral_norm <= sigma(weight) * (1 + 1e-6)
    assert found.lambda_max == pytest.approx(found.spectral_norm**2 / max(shape), rel=1e-12)
    assert found.stable_rank == pytest.approx(float(weight.square().sum()) / sigma(weight) ** 2, rel=1e-3)


@pytest.mark.parametrize("rows", [64, 600])
def test_an_eigenvalue_is_within_the_residual(rows: int) -> None:
    """Of noise, whose largest eigenvalues are close to each other: where the vector is not that of λmax yet."""
    layer = with_spike(rows, rows, spike=0.0)
    lam = torch.linalg.svdvals(layer.weight.detach().double()).square()
    screener, matrix = Screener(), matrix_of(layer)
    before = 0.0
    for step in range(12):
        found = screened(screener, matrix, step)
        value = found.spectral_norm**2
        assert before * (1 - 1e-6) <= value <= float(lam.max()) * (1 + 1e-6)
        assert float((lam - value).abs().min()) <= found.residual * value + 1e-6 * float(lam.max())
        before = value
    assert before == pytest.approx(float(lam.max()), rel=0.02)


def test_the_vector_of_the_last_screening_is_used() -> None:
    """Half the passes, a fifth of the residual and less; and it follows a direction that turns."""
    layer = with_spike(400, 300, spike=1.1)
    screener, matrix = Screener(), matrix_of(layer)
    first = screened(screener, matrix)
    for step in range(10):
        with torch.no_grad():
            layer.weight.add_(0.01 * torch.randn(400, 300, generator=torch.Generator().manual_seed(step)))
        found = screened(screener, matrix, step)
        assert found.residual < first.residual / 5
        assert found.spectral_norm == pytest.approx(sigma(layer.weight), rel=1e-4)
    screener.keep([])
    assert screened(screener, matrix).residual > found.residual


def test_slices_are_pooled() -> None:
    """The largest of any slice, and the norm of all."""
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 48, 3, bias=False)
    with torch.no_grad():
        layer.weight[:, :, 1, 2].add_(0.5)
    found = screened(Screener(), matrix_of(layer))
    slices = layer.weight.detach().double().permute(2, 3, 0, 1).reshape(9, 48, 24)
    assert found.frobenius_norm == pytest.approx(float(slices.norm()), rel=1e-5)
    assert found.spectral_norm == pytest.approx(float(torch.linalg.svdvals(slices).max()), rel=1e-4)
    assert found.N == 48


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_weight_without_norms_is_screened_again(value: float) -> None:
    """What is kept of it must not spoil what follows."""
    layer = with_spike(64, 48, spike=3.0)
    before = layer.weight.detach().clone()
    screener, matrix = Screener(), matrix_of(layer)
    nn.init.constant_(layer.weight, value)
    found = screened(screener, matrix)
    assert found.spectral_norm == 0 if value == 0 else math.isnan(found.spectral_norm)
    assert "lambda_max" not in found.measures
    with torch.no_grad():
        layer.weight.copy_(before)
    assert screened(screener, matrix).spectral_norm == pytest.approx(sigma(before), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_a_weight_does_not_matter(scale: float) -> None:
    layer = with_spike(64, 48, spike=3.0, scale=scale)
    assert screened(Screener(), matrix_of(layer)).spectral_norm == pytest.approx(sigma(layer.weight), rel=1e-4)


def test_what_is_computed_is_left_out() -> None:
    """The power iteration of a spectral norm would go on with each screening."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(64, 64)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    screener = Screener()
    assert screener.screen(matrix_of(model[0]), 1) is None
    assert screener.take() == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_numbers_of_a_device_arrive_later_in_one_transfer() -> None:
    """Those of the step at which they were queued, though the weight moves on."""
    device = SimulatedDevice(runs_at_once=False)
    transfers = Transfers({"cpu": device})
    layers = [with_spike(64, 48, spike=spike) for spike in (2.0, 3.0)]
    expected = [sigma(layer.weight) for layer in layers]
    screener = Screener(transfers)
    for matrix in discover(nn.Sequential(*layers)).matrices:
        screener.screen(matrix, 5)
    assert screener.take() == []
    with torch.no_grad():
        layers[0].weight.mul_(2)
    device.run()
    device.captured = True
    assert screener.take() == []
    device.captured = False
    found = screener.take()
    assert [each.spectral_norm for each in found] == pytest.approx(expected, rel=1e-4)
    assert (device.waits, device.broken, screener.take()) == (0, [], [])


def test_what_is_under_way_is_forgotten_with_the_weights_it_is_of() -> None:
    """And no vector is left of them: the next screening begins as the first."""
    device = SimulatedDevice(runs_at_once=False)
    screener, matrix = Screener(Transfers({"cpu": device})), matrix_of(with_spike(64, 48, spike=2.0))
    screener.screen(matrix, 5)
    assert screener.take() == []
    screener.screen(matrix, 6)
    screener.forget()
    device.run()
    assert screener.take() == []
    screener.screen(matrix, 1)
    assert screener.take() == []
    device.run()
    assert screener.take() == [screened(Screener(), matrix)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_memory_for_a_copy_nothing_is_begun(dtype: torch.dtype) -> None:
    """In the type to compute in, which may be wider than that of the weight."""
    size = 64 * 48 * (8 if dtype == torch.float64 else 4)
    for room, seconds in ((size - 1, None), (size, 0.0)):
        screener = Screener(Transfers({"cpu": SimulatedDevice(room=room)}))
        assert screener.screen(matrix_of(with_spike(64, 48, spike=2.0).to(dtype)), 1) == seconds
        assert len(screener.take()) == (seconds is not None)


def test_products_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a switch of the user's allows that, they are computed in float64."""
    monkeypatch.setattr(screening, "rounds_products", lambda _device: True)
    layer = with_spike(1500, 900, spike=3.0)
    found = screened(Screener(), matrix_of(layer))
    assert found.frobenius_norm == pytest.approx(float(layer.weight.detach().double().norm()), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        *((torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float16, 1e-5), (torch.float8_e4m3fn, 1e-6)),
        *((torch.float64, 1e-13), (torch.complex64, 1e-6)),
    ],
)
@pytest.mark.parametrize("size", [0, 3, 4096, 1 << 22])
def test_the_sum_of_so_many_squares_is_not_rounded(size: int, dtype: torch.dtype, tolerance: float) -> None:
    """In float32 that of 16 million elements would be off by a thousandth."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, size, generator=generator).to(dtype)
    wide = tensor.to(torch.complex128 if dtype.is_complex else torch.float64)
    expected = float(wide.abs().square().sum())
    for layout in (tensor, tensor.mT):
        square, seconds = sum_of_squares(layout)
        assert (square.dtype, square.shape, seconds) == (torch.float64, (), 0.0)
        assert float(square) == pytest.approx(expected, rel=tolerance)
