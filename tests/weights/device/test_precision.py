"""torch's switches for products of fewer bits, of both of its APIs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

import esdmon
from esdmon.weights import discover, read_spectrum, torch_private
from esdmon.weights.device.precision import read_weight, rounds_products
from esdmon.weights.device.solvers import gram_of

_NEW = [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Each is at its default before a test and after it: other packages set some when they are imported."""
    _reset()
    yield
    _reset()


def _reset() -> None:
    torch.set_float32_matmul_precision("highest")
    for backend in _NEW:
        backend.fp32_precision = "none"


def new(path: str, value: str) -> Callable[[], None]:
    def turn() -> None:
        owner: Any = torch.backends
        for part in path.split("."):
            owner = getattr(owner, part) if part else owner
        owner.fp32_precision = value

    return turn


def both() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def allow_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


@dataclass(frozen=True)
class Way:
    """A way to allow products of fewer bits."""

    turn: Callable[[], object]
    on_cpu: tuple[bool, bool, bool] = (False, False, False)
    """Whether products may be rounded of numbers that were stored in the `TYPES`, without instructions for TF32."""
    on_cuda: bool = False


TYPES = (torch.float32, torch.float16, torch.bfloat16)
BF16_ON_CPU = (True, True, False)  # bfloat16 has the bits that are left
WAYS = {
    "all": Way(new("", "tf32"), on_cuda=True),
    "all, ieee": Way(new("", "ieee")),
    "cuda": Way(new("cuda.matmul", "tf32"), on_cuda=True),
    "mkldnn": Way(new("mkldnn", "bf16"), BF16_ON_CPU),
    "mkldnn.matmul": Way(new("mkldnn.matmul", "bf16"), BF16_ON_CPU),
    "mkldnn.matmul, tf32": Way(new("mkldnn.matmul", "tf32")),
    "allow_tf32": Way(allow_tf32, on_cuda=True),
    "high": Way(lambda: torch.set_float32_matmul_precision("high"), on_cuda=True),
    "medium": Way(lambda: torch.set_float32_matmul_precision("medium"), BF16_ON_CPU, on_cuda=True),
    "both": Way(both, on_cuda=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_switch_leaves_readings_right(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are in float64 only where torch's own are rounded; TF32 on a CPU needs instructions that most lack."""
    monkeypatch.setattr(torch_private, "cpu_multiplies_in_tf32", lambda: False)
    WAYS[way].turn()
    model = nn.Sequential(*(nn.Linear(64, 96, bias=False, dtype=dtype) for dtype in TYPES))
    with esdmon.watch(model, every=1, budget=None, mode="sync", sinks=None, strict=True) as monitor:
        monitor.step()
    assert monitor.report is not None
    for layer, module in zip(monitor.report, model, strict=True):
        sizes = torch.linalg.svdvals(module.get_parameter("weight").detach().double())
        assert (layer.status, layer.precision) == ("ok", "float32")
        assert layer.measures["spectral_norm"] == pytest.approx(float(sizes[0]), rel=1e-5)
    assert tuple(rounds_products("cpu", dtype) for dtype in TYPES) == WAYS[way].on_cpu
    grams = [gram_of(module.get_parameter("weight").detach()[None], torch.float32) for module in model]
    assert tuple(gram.dtype == torch.float64 for gram in grams) == WAYS[way].on_cpu
    assert {rounds_products("cuda", dtype) for dtype in TYPES} == {WAYS[way].on_cuda}  # 16 bits are not measured there


@pytest.mark.parametrize("way", ["all", "all, ieee"])
def test_products_on_cuda(way: str) -> None:
    """Of tensors without numbers: the dtype and the device of what is computed."""
    WAYS[way].turn()
    with FakeTensorMode():
        for dtype in TYPES:
            gram = gram_of(torch.empty(1, 64, 96, dtype=dtype, device="cuda"), torch.float32)
            expected = torch.float64 if WAYS[way].on_cuda else torch.float32
            assert (gram.dtype, gram.device.type, gram.shape) == (expected, "cuda", (1, 64, 64))


class UnknownBackend:
    """Switches that raise when they are read."""

    @property
    def matmul(self) -> object:
        raise RuntimeError("mixed APIs")


def test_what_cannot_be_asked_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device, or a torch whose switches raise."""
    assert rounds_products("mps")
    for backend in ("mkldnn", "cuda"):
        monkeypatch.setattr(torch.backends, backend, UnknownBackend())
    assert rounds_products("cpu")
    assert rounds_products("cuda")


def test_tf32_counts_on_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the newest ones do; 16-bit numbers have no more bits than TF32."""
    monkeypatch.setattr(torch_private, "cpu_multiplies_in_tf32", lambda: True)
    new("mkldnn.matmul", "tf32")()
    assert [rounds_products("cpu", dtype) for dtype in TYPES] == [True, False, False]


class Product(nn.Module):
    """A weight that is a product of itself; it says in what it was computed."""

    seen: torch.dtype | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """W·Wᵀ·W."""
        return weight @ weight.mT @ weight


@pytest.mark.parametrize("autocast", [False, True])
def test_a_computed_weight_is_computed_in_full_precision(autocast: bool) -> None:  # noqa: FBT001 -- a case
    """Inside an autocast region, and where products are rounded: then float64, without touching the switch."""
    model = nn.Sequential(nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", Product())
    matrix = discover(model).matrices[0]
    original = model.get_parameter("0.parametrizations.weight.original").detach().double()
    if not autocast:
        torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        weight = read_weight(matrix)
        lam = read_spectrum(matrix).eigenvalues
    expected = original @ original.mT @ original
    assert weight.dtype == torch.float32
    assert torch.allclose(weight.double(), expected, rtol=1e-4, atol=1e-6)
    assert lam[-1] * 64 == pytest.approx(float(torch.linalg.svdvals(expected)[0]) ** 2, rel=1e-5)
    assert torch.get_float32_matmul_precision() == ("highest" if autocast else "medium")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_default_device_and_dtype_are_the_users() -> None:
    """Readings make their own tensors where the weight is."""
    model = nn.Sequential(nn.Linear(96, 64))
    matrix = discover(model).matrices[0]
    before = read_spectrum(matrix).eigenvalues
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"), esdmon.watch(model, every=1, budget=None, sinks=None, strict=True) as monitor:
            for _ in range(2):
                monitor.step()
        after = read_spectrum(matrix).eigenvalues
    finally:
        torch.set_default_dtype(torch.float32)
    assert monitor.report is not None
    assert (monitor.report["0"].status, monitor.report["0"].update_ratio) == ("ok", 0.0)
    assert np.array_equal(before, after)
