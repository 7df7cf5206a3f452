"""Readings on a simulated CPU that rounds the factors of float32 products where a switch of torch allows it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import esdmon
from esdmon.weights import Screener, Solver, discover, read_spectrum, solve_lapack, solve_torch, torch_private
from esdmon.weights.device import margins
from esdmon.weights.device.solvers import gram_of

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "linear"}
_EVERY_STACK = ("shuffled", "equalised", "windows")


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Round the factors of float32 products to nearest; `rounded` says whether that has changed one."""

    def __init__(self, to_fewer_bits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._to_fewer_bits = to_fewer_bits
        self.rounded = False

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name.partition("::")[2] in _PRODUCTS:
            args = tuple(self._round(arg) if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **(kwargs or {}))

    def _round(self, factor: Tensor) -> Tensor:
        if factor.dtype != torch.float32:
            return factor
        fewer = self._to_fewer_bits(factor)
        self.rounded |= not torch.equal(fewer, factor)
        return fewer


def _bf16(factor: Tensor) -> Tensor:
    return factor.bfloat16().float()


def _tf32(factor: Tensor) -> Tensor:
    return ((factor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture(params=["medium", "high"])
def coarse(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Rounding]:
    """A switch is set, and the CPU has the instructions for it."""
    monkeypatch.setattr(torch_private, "cpu_multiplies_in_tf32", lambda: True)
    torch.set_float32_matmul_precision(request.param)
    yield _Rounding(_bf16 if request.param == "medium" else _tf32)
    torch.set_float32_matmul_precision("highest")


def _weight(dtype: torch.dtype, *shape: int) -> Tensor:
    torch.manual_seed(0)
    return (torch.randn(shape) * 0.02).to(dtype)


def test_the_simulation_rounds(coarse: _Rounding) -> None:
    """Else none of the tests below could fail."""
    weight = _weight(torch.float32, 96, 64)
    exact = weight.double().mT @ weight.double()
    with coarse:
        plain = weight.mT @ weight
    assert coarse.rounded
    assert float((plain - exact).norm() / exact.norm()) > 1e-5


@pytest.mark.parametrize("solver", [solve_torch, solve_lapack])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_no_factor_is_rounded(coarse: _Rounding, dtype: torch.dtype, solver: Solver) -> None:
    """Of a weight and all stacks made of it: rows and columns of equal scales have more bits than the weight."""
    matrix = discover({"w": _weight(dtype, 200, 64)}).matrices[0]
    exact = read_spectrum(matrix, precision="exact", also=_EVERY_STACK, solver=solve_lapack)
    with coarse:
        spectrum = read_spectrum(matrix, also=_EVERY_STACK, solver=solver)
    assert not coarse.rounded
    for one, other in zip(_eigenvalues(spectrum), _eigenvalues(exact), strict=True):
        assert np.abs(one - other).max() < 3e-6 * other.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scales_that_a_device_computes_are_not_rounded(
    coarse: _Rounding, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of tensors: on a CPU numpy computes them."""
    monkeypatch.setattr(margins, "as_array", lambda _: None)
    weight = _weight(dtype, 200, 64) * torch.logspace(-1, 1, 200)[:, None].to(dtype)
    matrix = discover({"w": weight}).matrices[0]
    exact = read_spectrum(matrix, precision="exact", also=("equalised",))
    with coarse:
        spectrum = read_spectrum(matrix, also=("equalised",))
    assert not coarse.rounded
    assert spectrum.bulk is not None
    assert exact.bulk is not None
    assert spectrum.bulk.edge == pytest.approx(exact.bulk.edge, rel=1e-5)


def _eigenvalues(spectrum: Any) -> list[Any]:
    return [spectrum.eigenvalues, *(getattr(spectrum, name) for name in _EVERY_STACK)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_column_is_not_rounded(coarse: _Rounding, dtype: torch.dtype) -> None:
    """LAPACK does not solve that, so torch does."""
    matrix = discover(nn.Sequential(nn.Conv2d(32, 32, 4, groups=32, dtype=dtype))).matrices[0]
    exact = read_spectrum(matrix, precision="exact", solver=solve_lapack).eigenvalues
    with coarse:
        found = read_spectrum(matrix, solver=solve_lapack).eigenvalues
    assert not coarse.rounded
    assert np.abs(found - exact).max() < 3e-6 * exact.max()


def test_products_that_are_exact_are_in_float32(coarse: _Rounding) -> None:
    """Those of bfloat16 under both switches, and those of float16 under TF32."""
    of_float16 = torch.float64 if torch.get_float32_matmul_precision() == "medium" else torch.float32
    expected = {torch.bfloat16: torch.float32, torch.float16: of_float16, torch.float32: torch.float64}
    with coarse:
        used = {dtype: gram_of(_weight(dtype, 1, 96, 64), torch.float32).dtype for dtype in expected}
    assert used == expected
    assert not coarse.rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_screening_rounds_nothing(coarse: _Rounding, dtype: torch.dtype) -> None:
    """Its vectors have more bits than a weight of 16 bits."""
    weight = _weight(dtype, 96, 64)
    screener = Screener()
    with coarse:
        screener.screen(discover({"w": weight}).matrices[0], 1)
        (found,) = screener.take()
    assert not coarse.rounded
    assert found.frobenius_norm == pytest.approx(float(weight.double().norm()), rel=1e-6)


class _Attention(nn.Module):
    """An attention and a linear layer with an adapter."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 2, dtype=dtype)
        self.up = nn.Linear(64, 96, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_view_is_rounded(coarse: _Rounding, dtype: torch.dtype) -> None:
    """Bases, adapters and their sums; products of projections; differences from a state before."""
    torch.manual_seed(0)
    base = _Attention(dtype)
    before = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in base.state_dict().items()}
    options: dict[str, Any] = {"every": 1, "budget": None, "mode": "sync", "sinks": None, "strict": True}
    with coarse, esdmon.watch(base, reference=before, **options) as differences:
        differences.step()
    model = peft.get_peft_model(base, peft.LoraConfig(r=16, target_modules=["up"], init_lora_weights=False))
    layers = ["*", "*/qk", "*/ov", "*/merged"]
    with coarse, esdmon.watch(model, layers=layers, measures="all", **options) as monitor:
        monitor.step()
    assert differences.report is not None
    assert monitor.report is not None
    assert {layer.view for layer in differences.report} == {"difference"}
    assert {layer.view for layer in monitor.report} == {"weight", "base", "lora-delta", "merged", "qk", "ov"}
    assert {layer.status for layer in (*differences.report, *monitor.report)} == {"ok"}
    assert not coarse.rounded
