"""Scales of rows and columns, measured on the device of the weight, and the equalised view."""

import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from esdmon.runtime.workers.histogram import histogram
from esdmon.spectrum import Phase
from esdmon.weights.device import blocks, margins, sums
from esdmon.weights.device.margins import equalise, scales_of
from esdmon.weights.device.sums import sum_up
from tests.benchmarks.ensembles import scaled
from tests.matrices import pareto, read_stack


def test_margins_are_mean_squares() -> None:
    stack = torch.randn(3, 70, 50, generator=torch.Generator().manual_seed(0))
    margins = sum_up(stack).margins
    assert torch.allclose(margins.rows, stack.double().square().mean(2), rtol=1e-5)
    assert torch.allclose(margins.columns, stack.double().square().mean(1), rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 5.0])  # of a mean that is all of the mean square, and of none
def test_sums_are_those_of_all_elements_in_whatever_order_they_lie(shift: float) -> None:
    stack = torch.randn(2, 700, 300, generator=torch.Generator().manual_seed(1)) * 0.1 + shift  # of two blocks
    sums, transposed = sum_up(stack), sum_up(stack.mT.contiguous().mT)
    exact = stack.double()
    expected = [float(each) for each in (exact.min(), exact.max(), exact.mean(), exact.var(correction=0))]
    assert [sums.minimum, sums.maximum, sums.mean, sums.variance] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert transposed.variance == pytest.approx(sums.variance, rel=1e-5)
    assert torch.allclose(transposed.margins.rows, sums.margins.rows, rtol=1e-5)
    assert torch.allclose(transposed.margins.columns, sums.margins.columns, rtol=1e-5)
    assert not sums.may_have_zeros
    stack[1, 600, 7] = 0
    assert sum_up(stack).may_have_zeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scales_are_those_that_were_put_in(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    rows, columns = 10 ** (0.2 * rng.standard_normal(400)), 10 ** (0.2 * rng.standard_normal(300))
    stack = torch.from_numpy(rng.standard_normal((1, 300, 400)) * columns[:, None] * rows).to(dtype)
    scales = scales_of(stack, sum_up(stack).margins)
    assert scales.rows.shape == (1, 400)  # N is the longer side
    for found, given in ((scales.rows[0], rows**2), (scales.columns[0], columns**2)):
        assert np.std(np.log(found / given)) < 0.12
    assert scales.kurtosis[0] == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 300, 400), (3, 400, 90)])
@pytest.mark.parametrize("block", [blocks._LARGE, 9000])
def test_an_accelerator_computes_what_the_cpu_does(
    dtype: torch.dtype, shape: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU by numpy, any other device by torch, which is made to compute on the CPU here."""
    rng = np.random.default_rng(6)
    matrices = rng.standard_normal(shape) * 10 ** (0.2 * rng.standard_normal((1, shape[1], 1)))
    matrices[0] = pareto(rng, 2.8, shape[1] * shape[2]).reshape(shape[1:]) * rng.choice([-1.0, 1.0], shape[1:])
    stack = torch.from_numpy(matrices / 30).to(dtype)
    expected = sum_up(stack)
    scales = scales_of(stack, expected.margins)
    equal = equalise(stack, expected.margins)
    monkeypatch.setattr(margins, "as_array", lambda _: None)
    monkeypatch.setattr(sums, "as_array", lambda _: None)
    monkeypatch.setattr(blocks, "_LARGE", block)
    found = sum_up(stack)
    for name in ("minimum", "maximum", "mean", "variance"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    assert torch.allclose(found.margins.rows, expected.margins.rows, rtol=1e-5)
    assert torch.allclose(found.margins.columns, expected.margins.columns, rtol=1e-5)
    again = scales_of(stack, found.margins)
    for one, other in ((again.rows, scales.rows), (again.columns, scales.columns), (again.kurtosis, scales.kurtosis)):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    assert np.ptp(again.rows[0]) == 0
    assert torch.allclose(equalise(stack, found.margins), equal, rtol=1e-3, atol=1e-5)


def test_a_single_large_row_keeps_its_scale() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((256, 128))
    matrix[3] *= 20
    stack = torch.from_numpy(matrix)[None]
    scales = scales_of(stack, sum_up(stack).margins)
    assert scales.rows[0, 3] / np.median(scales.rows) == pytest.approx(400, rel=0.3)
    assert np.std(np.log(scales.columns)) < 0.15


def test_equalised_rows_and_columns_have_equal_mean_squares() -> None:
    rng = np.random.default_rng(2)
    stack = torch.from_numpy(np.stack([scaled(rng, rng.standard_normal((80, 60)), 0.3) for _ in range(2)]))
    margins = sum_up(equalise(stack, sum_up(stack).margins)).margins
    assert torch.allclose(margins.rows, torch.ones_like(margins.rows), rtol=1e-2)
    assert torch.allclose(margins.columns, torch.ones_like(margins.columns), rtol=1e-2)


@pytest.mark.parametrize("by", ["arrays", "tensors"])
@pytest.mark.parametrize(("slices", "rows", "columns"), [(1, 30_000, 12), (1, 12, 30_000), (9, 64, 32)])
def test_any_shape_is_equalised_and_a_dead_slice_stays_zero(
    monkeypatch: pytest.MonkeyPatch, by: str, slices: int, rows: int, columns: int
) -> None:
    """Of a tall float32 matrix the scales stay within float32; of a kernel some positions may be zero."""
    stack = torch.randn(slices, rows, columns, generator=torch.Generator().manual_seed(2))
    stack[1:5] = 0
    if by == "tensors":
        monkeypatch.setattr(margins, "as_array", lambda _: None)
    found = sum_up(equalise(stack, sum_up(stack).margins)).margins
    expected = stack.double().square().sum((1, 2)).sign()[:, None]
    assert torch.allclose(found.rows, expected.expand(-1, rows), atol=1e-2)
    assert torch.allclose(found.columns, expected.expand(-1, columns), atol=1e-2)


def test_the_equalised_view_shows_spikes_below_the_raw_edge() -> None:
    rng = np.random.default_rng(3)
    n, m = 384, 192
    left, right = (np.linalg.qr(rng.standard_normal((side, 5)))[0] for side in (n, m))
    spikes = left * (2.5**0.5 * (n * m) ** 0.25) @ right.T
    weight = torch.from_numpy(scaled(rng, rng.standard_normal((n, m)) + spikes, 0.2)).float()
    layer = nn.Linear(m, n, bias=False)
    layer.weight.data = weight
    (found,) = esdmon.analyze(layer, measures=["n_spikes", "equalised_spikes", "equalised_soft_rank"])
    assert found.phase is Phase.RANDOM_LIKE
    assert "can hide weaker structure: equalised_spikes counts it." in found.explanation
    assert found.measures["n_spikes"] == 0
    assert found.measures["equalised_spikes"] >= 4
    assert found.measures["equalised_soft_rank"] < 0.9


def test_the_histogram_has_the_noise_of_these_scales() -> None:
    rng = np.random.default_rng(4)
    spectrum = read_stack(torch.from_numpy(scaled(rng, rng.standard_normal((200, 100)), 0.15))[None])
    esd = histogram(spectrum)
    assert esd is not None
    assert sum(esd.noise) == pytest.approx(100, abs=3)
    assert np.abs(np.cumsum(esd.noise) - np.cumsum(esd.counts)).max() < 6
    flat = histogram(read_stack(torch.from_numpy(rng.standard_normal((1, 200, 100)))))
    assert flat is not None
    assert flat.noise == ()


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(400, 300), (64, 256)])
def test_heavy_elements_alone_leave_equal_scales(exponent: float, shape: tuple[int, int]) -> None:
    """Their largest rows and columns are those with the largest elements: an order at random has such ones as well."""
    rng = np.random.default_rng(3)
    stack = torch.from_numpy(pareto(rng, exponent + 1, shape[0] * shape[1]).reshape(1, *shape))
    stack *= torch.from_numpy(rng.choice([-1.0, 1.0], shape))
    flat = scales_of(stack, sum_up(stack).margins)
    assert np.ptp(flat.rows) == np.ptp(flat.columns) == 0


@pytest.mark.parametrize("exponent", [1.5, 2.0])
def test_heavy_elements_keep_the_scales_of_rows_that_differ(exponent: float) -> None:
    rng = np.random.default_rng(3)
    stack = torch.from_numpy(pareto(rng, exponent + 1, 300 * 200).reshape(1, 300, 200))
    stack[:, ::2] *= 3
    assert np.ptp(scales_of(stack, sum_up(stack).margins).rows) > 0


def test_only_slices_of_heavy_elements_lose_their_scales() -> None:
    rng = np.random.default_rng(4)
    heavy = pareto(rng, 2.5, 300 * 200).reshape(300, 200) * rng.choice([-1.0, 1.0], (300, 200))
    rows = scaled(rng, rng.standard_normal((300, 200)), 0.3)
    stack = torch.from_numpy(np.stack([heavy, rows]))
    scales = scales_of(stack, sum_up(stack).margins)
    assert np.ptp(scales.rows[0]) == 0
    assert np.std(np.log(scales.rows[1])) > 1


def test_large_elements_below_the_edge_of_noise_leave_the_scales() -> None:
    """Student's t with 5 degrees in random order: no element makes a spike, and noise has the measured scales."""
    matrix = np.random.default_rng(5).standard_t(5, (512, 512))
    matrix[7, 9] = 0.8 * 512**0.5 * matrix.std()
    stack = torch.from_numpy(matrix)[None]
    assert np.ptp(scales_of(stack, sum_up(stack).margins).rows) > 0
