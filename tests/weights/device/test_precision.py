"""torch's switches for products of fewer bits, of both of its APIs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import esdmon
from esdmon import torch_private
from esdmon.weights import discover, read_spectrum
from esdmon.weights.device.precision import read_weight, rounds_products

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


WAYS: dict[str, tuple[Callable[[], object], str, bool]] = {
    "all": (new("", "tf32"), "float32", True),
    "all, ieee": (new("", "ieee"), "float32", False),
    "cuda": (new("cuda.matmul", "tf32"), "float32", True),
    "mkldnn": (new("mkldnn", "bf16"), "float64", False),
    "mkldnn.matmul": (new("mkldnn.matmul", "bf16"), "float64", False),
    "mkldnn.matmul, tf32": (new("mkldnn.matmul", "tf32"), "float32", False),
    "allow_tf32": (allow_tf32, "float32", True),
    "high": (lambda: torch.set_float32_matmul_precision("high"), "float32", True),
    "medium": (lambda: torch.set_float32_matmul_precision("medium"), "float64", True),
    "both": (both, "float32", True),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_switch_leaves_readings_right(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in float64 only where its own products are rounded; TF32 needs instructions that most have not."""
    monkeypatch.setattr(torch_private, "cpu_multiplies_in_tf32", lambda: False)
    turn, used, on_cuda = WAYS[way]
    turn()
    model = nn.Sequential(nn.Linear(64, 96))
    with esdmon.watch(model, every=1, budget=None, mode="sync", sinks=None, strict=True) as monitor:
        monitor.step()
    assert monitor.report is not None
    layer = monitor.report["0"]
    sizes = torch.linalg.svdvals(model.get_parameter("0.weight").detach().double())
    assert (layer.status, layer.precision) == ("ok", used)
    assert layer.measures["spectral_norm"] == pytest.approx(float(sizes[0]), rel=1e-5)
    assert rounds_products("cuda") == on_cuda


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
    """As the newest ones do."""
    monkeypatch.setattr(torch_private, "cpu_multiplies_in_tf32", lambda: True)
    new("mkldnn.matmul", "tf32")()
    assert rounds_products("cpu")


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
