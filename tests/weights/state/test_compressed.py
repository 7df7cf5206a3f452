"""Weights that compressed-tensors packs, in the layouts that its version 0.20.1 was seen to write."""

from typing import Any

import pytest
import torch
from torch import Tensor

import esdmon
from esdmon.weights import discover
from tests.weights.state.test_quantized_files import pack

ROWS, GROUPS = 64, 4
SPARSE = {
    "fc.weight_packed": None,
    "fc.weight_scale": None,
    "fc.shape": torch.tensor([ROWS, 64]),
    "fc.compressed": torch.ones(ROWS, 32),
    "fc.bitmask": torch.full((ROWS, 8), 0b00110101, dtype=torch.uint8),
}
"""A sparse weight in the place of a packed one."""
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def filled(codes: Tensor, columns: int) -> Tensor:
    """Codes with zeros behind each row, up to a number of columns."""
    return torch.nn.functional.pad(codes, (0, columns - codes.shape[1]))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["zero points", "half of the range"])
@pytest.mark.parametrize(("inputs", "multiple"), [(128, 32), (72, 32), (72, 1)])
@pytest.mark.parametrize("order", ["in order", "by activation", "none"])
def test_packed_integers_are_read_as_what_they_stand_for(
    bits: int, zeros: str, inputs: int, multiple: int, order: str
) -> None:
    """(q − z)·s by group of inputs, in rows that are filled up to 32 codes, or to a word."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (ROWS, inputs), generator=generator)
    offsets = torch.randint(0, 2**bits, (ROWS, GROUPS), generator=generator)
    scales = torch.rand(ROWS, GROUPS, generator=generator) + 0.5
    group_of = torch.arange(inputs) // (inputs // GROUPS)
    multiple = max(multiple, 32 // bits)
    whole = -(-inputs // multiple) * multiple
    state = {
        "fc.weight_packed": pack(filled(codes, whole), bits),
        "fc.weight_scale": scales,
        "fc.weight_shape": torch.tensor([ROWS, inputs]),
    }
    if order != "in order":
        mixed = group_of[torch.randperm(inputs, generator=generator)]
        group_of = group_of if order == "none" else mixed
        state["fc.weight_g_idx"] = torch.full((inputs,), -1) if order == "none" else mixed.int()
    if zeros == "zero points":
        state["fc.weight_zero_point"] = pack(offsets.T.contiguous(), bits).T.contiguous()
    else:
        offsets = torch.full((ROWS, GROUPS), 2 ** (bits - 1))
    (matrix,) = discover(state).matrices
    assert matrix.name == "fc"
    assert matrix.size().shape == (1, ROWS, inputs)
    assert torch.equal(matrix.read(), (codes - offsets[:, group_of]).float() * scales[:, group_of])


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_packed_floats_are_read_as_what_they_stand_for(kind: str) -> None:
    """Two in a byte, with a scale for each group of inputs; in NVFP4 these are divided by one for the tensor."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (ROWS, 128), generator=generator)
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    packed = {"fc.weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)}
    if kind == "nvfp4":
        scales = (torch.rand(ROWS, 8, generator=generator) * 100 + 1).to(torch.float8_e4m3fn)
        state = packed | {"fc.weight_scale": scales, "fc.weight_global_scale": torch.tensor([50.0])}
        factors = scales.float() / 50
    else:
        exponents = torch.randint(120, 130, (ROWS, 4), generator=generator)
        state = packed | {"fc.weight_scale": exponents.to(torch.uint8)}
        factors = 2.0 ** (exponents - 127)
    (matrix,) = discover(state).matrices
    assert torch.equal(matrix.read(), values * factors.repeat_interleave(128 // factors.shape[1], dim=1))


@pytest.mark.parametrize("flat", ["2:4", "any places"])
@pytest.mark.parametrize("scale", [None, (1,), (ROWS, 1)])
def test_sparse_numbers_are_read_with_their_zeros(flat: str, scale: tuple[int, ...] | None) -> None:
    """In rows where each has as many, else one behind the other (compressed-tensors 0.9.4); also of float8."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(ROWS, 52, generator=generator) + 1
    codes = weight if scale is None else weight.to(torch.float8_e4m3fn)
    places = torch.zeros(ROWS, 13, 4, dtype=torch.bool)
    places[:, :, [0, 3]] = True
    if flat == "any places":
        places[3:9, 1, 1] = True
    bits = torch.nn.functional.pad(places.flatten(1), (0, 4)).reshape(ROWS, -1, 8)
    numbers = codes.float()[places.flatten(1)].to(codes.dtype)
    state = {
        "fc.shape": torch.tensor([[ROWS], [52]]) if flat == "2:4" else torch.tensor([ROWS, 52]),
        "fc.compressed": numbers.reshape(ROWS, -1) if flat == "2:4" else numbers,
        "fc.bitmask": (bits << torch.arange(8)).sum(dim=2).to(torch.uint8),
    }
    scales = torch.ones(1) if scale is None else torch.rand(scale, generator=generator)
    state |= {} if scale is None else {"fc.weight_scale": scales}
    (matrix,) = discover(state).matrices
    assert matrix.name == "fc"
    assert torch.equal(matrix.read(), codes.float() * places.flatten(1) * scales)


@pytest.mark.parametrize(
    "changed",
    [
        {"fc.weight_shape": torch.tensor([ROWS, 500])},
        {"fc.weight_shape": torch.tensor([-1, -1])},
        {"fc.weight_shape": None},
        {"fc.weight_shape": torch.tensor([ROWS, float("nan")])},
        {"fc.weight_scale": torch.ones(7, 2)},
        {"fc.weight_scale": torch.ones(3)},
        {"fc.weight_zero_point": torch.zeros(ROWS, 2, dtype=torch.int8)},
        {"fc.weight_g_idx": torch.full((64,), 9)},
        {"fc.weight_packed": torch.zeros(ROWS, 8, dtype=torch.uint8)},
        {  # floats of six bits
            "fc.weight_packed": torch.zeros(ROWS, 48, dtype=torch.uint8),
            "fc.weight_scale": torch.zeros(ROWS, 2, dtype=torch.uint8),
        },
        SPARSE | {"fc.shape": torch.tensor([ROWS, 70])},
        SPARSE | {"fc.compressed": torch.ones(ROWS, 31)},
        SPARSE | {"fc.compressed": torch.ones(ROWS, 32).to(torch.float8_e4m3fn)},
        SPARSE | {"fc.weight_scale": torch.ones(ROWS, 2)},
    ],
)
def test_contradictory_packed_numbers_are_skipped_with_a_reason(changed: dict[str, Any]) -> None:
    """Sides that do not fit each other; the other layers are read."""
    state: dict[str, Any] = {
        "fc.weight_packed": torch.zeros(ROWS, 8, dtype=torch.int32),
        "fc.weight_scale": torch.ones(ROWS, 2),
        "fc.weight_shape": torch.tensor([ROWS, 64]),
        "out.weight": torch.randn(64, 64),
    }
    state = {name: tensor for name, tensor in (state | changed).items() if tensor is not None}
    report = esdmon.analyze(state)
    assert {layer.name: layer.status for layer in report} == {"fc": "skipped", "out": "ok"}
    assert "packed by compressed-tensors" in str(report.coverage)


def test_scales_of_packed_numbers_are_no_matrices() -> None:
    """Those of quanto's 4 bits (optimum-quanto 0.2.7), which are packed one level deeper than its 8 bits."""
    state = {
        "fc.weight._data._data": torch.zeros(48, 64, dtype=torch.uint8),
        "fc.weight._scale": torch.rand(96, 64),
        "fc.weight._shift": torch.rand(96, 64),
        "out.weight": torch.randn(64, 64),
    }
    report = esdmon.analyze(state)
    assert [(layer.name, layer.status) for layer in report] == [("fc.weight._data._data", "skipped"), ("out", "ok")]


def test_scales_of_packed_sparse_integers_are_no_matrix() -> None:
    """Those of Marlin for 2:4, whose integers are in an order of its kernel (compressed-tensors 0.9.4)."""
    state = {
        "fc.weight_packed": torch.zeros(8, 192, dtype=torch.int32),
        "fc.scale_packed": torch.rand(32, 96),
        "fc.meta": torch.zeros(64, 96, dtype=torch.int16),
    }
    assert {layer.name: layer.status for layer in esdmon.analyze({**state, "out.weight": torch.randn(64, 64)})} == {
        "fc.weight_packed": "skipped",
        "out": "ok",
    }
