"""A large convolution, whose slices lie scattered in memory: copied a few at a time, to the same numbers."""

import tracemalloc
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import esdmon
from esdmon.weights import Matrix, discover, read_spectrum, solve_lapack
from esdmon.weights.device import eigen


def _weight(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Noise of unequal scales, spikes in a single slice, and one large element."""
    random = torch.Generator().manual_seed(0)
    outputs, inputs = shape
    weight = 0.02 * torch.randn(outputs, inputs, 3, 3, generator=random)
    weight *= torch.rand(outputs, 1, 1, 1, generator=random) + 0.1
    weight[:, :, 0, 1] += torch.outer(torch.randn(outputs, generator=random), torch.randn(inputs, generator=random))
    weight[3, 4, 1, 1] = 30.0
    return weight.to(dtype)


def _model(weight: Tensor) -> nn.Module:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer)


def _matrix(weight: Tensor) -> Matrix:
    return discover(_model(weight)).matrices[0]


def _with_contiguous_slices(weight: Tensor) -> Tensor:
    """The same weight, in memory position by position of the kernel."""
    return weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(400, 80), (80, 400)], ids=str)
@pytest.mark.parametrize("dead", [0, 1], ids="{} dead".format)
def test_all_is_as_of_contiguous_slices(
    dead: int, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit."""
    monkeypatch.setattr(eigen, "_LARGE", 0)
    weight = _weight(shape, dtype)
    weight[:dead], weight[:, :dead] = 0, 0
    scattered, contiguous = _matrix(weight), _matrix(_with_contiguous_slices(weight))
    assert 1 not in scattered.to_stack(scattered.read()).stride()[1:]
    assert contiguous.to_stack(contiguous.read()).is_contiguous()
    for also in (("shuffled", "equalised", "windows"), ("vectors",)):
        one, other = (_numbers(read_spectrum(each, also=also, solver=solve_lapack)) for each in (scattered, contiguous))
        assert len(one) > 20
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
    measures = [esdmon.analyze(_model(each.read()))["0"].measures for each in (scattered, contiguous)]
    assert repr(measures[0]) == repr(measures[1])


def _numbers(part: Any) -> list[Any]:
    """All numbers of a record, those of the records in it included."""
    found = []
    for field in fields(part):
        value = getattr(part, field.name)
        if hasattr(value, "__dataclass_fields__"):
            found += _numbers(value)
        elif isinstance(value, (float, int, np.ndarray)):
            found.append(value)
    return found


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """The bytes of the largest tensor that an operator makes, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
            self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return made


def test_no_copy_of_all_slices_is_made() -> None:
    """By torch, and by numpy, whose memory Python counts."""
    weight = 0.02 * torch.randn(512, 512, 3, 3)
    matrix = _matrix(weight)
    largest = _Largest()
    with largest:
        read_spectrum(matrix, solver=solve_lapack)  # loads packages and fills caches
    tracemalloc.start()
    try:
        with largest:
            read_spectrum(matrix, solver=solve_lapack)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.bytes <= 4 * 2 * weight[..., 0, 0].numel()
    assert peak < 4 * weight.numel() / 2
